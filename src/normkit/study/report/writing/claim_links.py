"""Links from the strengths and weaknesses of a method to the experiments on them."""

from __future__ import annotations

from collections.abc import Sequence

from normkit.catalog import Statement
from normkit.study.analysis.evidence import Evidence


def linked(statement: Statement, evidence: Sequence[Evidence]) -> tuple[str, list[Evidence]]:
    """The claim of a strength or weakness, and its experiments; "" and no experiments if there is no claim.

    >>> linked(Statement("faster convergence", "收敛更快", "BN-1"), ())
    ('BN-1', [])
    """
    of_claim = [e for e in evidence if statement.claim and e.claim == statement.claim]
    named = [e for e in of_claim if e.name.startswith(statement.experiments)]
    return statement.claim, named or of_claim


def summary(evidence: Sequence[Evidence]) -> str:
    """The finding that all experiments share, or "mixed"; "" for no experiments."""
    found = {e.finding for e in evidence}
    return "mixed" if len(found) > 1 else next(iter(found), "")
