"""`audit`: rules on the normalization of a model, and what one run shows of it."""

from normkit.tools.audit.report import Finding, NotRun, Report
from normkit.tools.audit.run import audit

__all__ = ["Finding", "NotRun", "Report", "audit"]
