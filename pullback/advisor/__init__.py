"""From records to findings: what is wrong, the numbers that say so, and one thing to do about it."""

from pullback.advisor.diagnose import diagnose
from pullback.advisor.findings import Finding

__all__ = ["Finding", "diagnose"]
