"""The charts that a page of a file holds, as its script unpacks them."""

from __future__ import annotations

import base64
import json
import re
import zlib
from typing import Any


def charts_text(page: str) -> str:
    found = re.search(r'<script type="text/plain" id="charts">(.*?)</script>', page, re.S)
    assert found is not None
    return zlib.decompress(base64.b64decode(found[1])).decode()


def charts_in(page: str) -> dict[str, Any]:
    charts: dict[str, Any] = json.loads(charts_text(page))
    return charts
