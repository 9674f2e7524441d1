"""The record of a training run on disk: numbers as JSON lines, arrays in Zarr, readable while it is written."""

from pullback.runs.reader import Record, Run, load_run
from pullback.runs.schema import SCHEMA_VERSION
from pullback.runs.writer import RunWriter

__all__ = ["SCHEMA_VERSION", "Record", "Run", "RunWriter", "load_run"]
