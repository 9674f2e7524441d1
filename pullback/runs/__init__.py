"""The record of a training run on disk: numbers as JSON lines, arrays in Zarr, readable while it is written."""

from pullback.runs.compare import Row, compare_runs, differing_settings
from pullback.runs.reader import Record, Run, load_run
from pullback.runs.schema import SCHEMA_VERSION
from pullback.runs.writer import RunWriter

__all__ = ["SCHEMA_VERSION", "Record", "Row", "Run", "RunWriter", "compare_runs", "differing_settings", "load_run"]
