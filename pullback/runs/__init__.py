"""The record of a training run on disk: JSON lines, columns once there are many, arrays in Zarr; readable meanwhile."""

from pullback.runs.compare import Row, compare_runs, differing_settings
from pullback.runs.one_record import Record
from pullback.runs.reader import Run, load_run
from pullback.runs.schema import SCHEMA_VERSION
from pullback.runs.writer import RunWriter

__all__ = ["SCHEMA_VERSION", "Record", "Row", "Run", "RunWriter", "compare_runs", "differing_settings", "load_run"]
