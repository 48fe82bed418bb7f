"""Links from the strengths and weaknesses of a method to the experiments on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from normkit.catalog import Text
from normkit.study.analysis.evidence import Evidence

LINKS: Mapping[tuple[str, str], tuple[str, str]] = {
    ("batch_norm", "faster convergence"): ("BN-1", ""),
    ("batch_norm", "allows a higher learning rate"): ("BN-2", ""),
    ("batch_norm", "batch noise regularizes mildly, like dropout"): ("BN-3", ""),
    ("batch_norm", "poor estimates on small batches"): ("BN-4", ""),
    ("batch_norm", "weaker on sequences (RNN, Transformer)"): ("BN-5", ""),
    ("batch_norm", "training and inference differ: inference needs recorded statistics"): ("BN-6", ""),
    ("layer_norm", "independent of the batch"): ("LN-1", "batch dependence"),
    ("layer_norm", "fits small batches"): ("LN-1", "flat"),
    ("layer_norm", "more computation"): ("LN-2", "time"),
    ("layer_norm", "may converge a little slower"): ("LN-2", "steps"),
    ("instance_norm", "acts on each image's style (contrast, brightness)"): ("IN-1", "contrast"),
    ("instance_norm", "fits generation"): ("IN-1", "stylizer"),
    ("instance_norm", "not for classification"): ("IN-2", "ordinary"),
    ("instance_norm", "sees no global information"): ("IN-2", "classes by contrast"),
    ("group_norm", "fits small batches"): ("GN-1", ""),
    ("group_norm", "sensitive to kernel size and to the number of channels and groups"): ("GN-2", ""),
    ("weight_norm", "faster convergence"): ("WN-1", "steps"),
    ("weight_norm", "more stability"): ("WN-1", "stead"),
    ("weight_norm", "worse than batch norm on some tasks"): ("WN-2", ""),
}
"""For a method and a text of its row in the catalog: the claim, and the start of the names of its experiments."""


def linked(method: str, text: Text, evidence: Sequence[Evidence]) -> tuple[str, list[Evidence]]:
    """The claim of a strength or weakness, and its experiments; "" and none where there is no experiment.

    >>> linked("batch_norm", Text("faster convergence", "收敛更快"), ())
    ('BN-1', [])
    """
    claim, start = LINKS.get((method, str(text)), ("", ""))
    of_claim = [e for e in evidence if e.claim == claim]
    named = [e for e in of_claim if e.name.startswith(start)]
    return claim, named or of_claim


def summary(evidence: Sequence[Evidence]) -> str:
    """The finding that all experiments share, or "mixed"; "" of none."""
    found = {e.finding for e in evidence}
    return "mixed" if len(found) > 1 else next(iter(found), "")
