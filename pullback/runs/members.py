"""Members of a block, which is a ZIP archive: where each stands, and one of them, checked."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from pathlib import Path

BEFORE = struct.Struct("<26xHH")  # in front of a member: how long its name is, and what else stands before it


def members_of(path: Path) -> dict[str, zipfile.ZipInfo]:
    """Where each member of a block stands, by name.

    Raises:
        ValueError: the block is damaged, or none is there.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {member.filename: member for member in archive.infolist()}
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        message = f"{path.name}: {error}"
        raise ValueError(message) from error


def read_member(path: Path, members: dict[str, zipfile.ZipInfo], name: str) -> bytes:
    """A member, checked; without reading all over where the others stand, which takes longer than this one.

    Raises:
        ValueError: it is damaged, or none is there.
    """
    try:
        member = members[name]
        with path.open("rb") as file:
            file.seek(member.header_offset)
            file.seek(sum(BEFORE.unpack(file.read(BEFORE.size))), os.SEEK_CUR)
            content = zlib.decompress(file.read(member.compress_size), -zlib.MAX_WBITS)
    except (OSError, KeyError, zlib.error, struct.error) as error:
        message = f"{path.name}: {error}"
        raise ValueError(message) from error
    if zlib.crc32(content) != member.CRC:
        message = f"{path.name}: {name} is not what was written"
        raise ValueError(message)
    return content
