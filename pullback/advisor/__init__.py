"""From records to findings: what is wrong, the numbers that say so, and one thing to do about it."""

from pullback.advisor.change import Change
from pullback.advisor.diagnose import diagnose
from pullback.advisor.findings import Finding, Findings
from pullback.advisor.verdict import verdict

__all__ = ["Change", "Finding", "Findings", "diagnose", "verdict"]
