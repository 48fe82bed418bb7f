"""Rules on how many elements share statistics: NK201 to NK203."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normkit.tools.audit.measure.facts import Subject
from normkit.tools.audit.rules.rule import Hit, Rule

FEW = 16
"""A variance of 16 independent values errs by sqrt(2 / 15), more than a third."""


def few_elements(subject: Subject) -> Iterator[Hit]:
    assert subject.batch_size is not None
    for norm in subject.norms:
        if not norm.is_batch or not norm.shapes or subject.frozen(norm):
            continue
        ranks = subject.world_size if norm.synced else 1
        samples = max(1, subject.batch_size // (subject.world_size * subject.accumulate)) * ranks
        shape = norm.shapes[0]
        # Frames or crops that were folded into the batch multiply with it.
        fold = max(1, shape[0] // subject.samples)
        positions = math.prod(shape[2:])
        count = samples * fold * positions
        if count < FEW:
            message = f"{count} elements per channel: {samples} samples of {fold * positions} positions at a time"
            measured = {"elements": count, "samples": samples, "positions": fold * positions}
            yield Hit(norm.name, message, measured, "error" if count == 1 else "")


def one_element(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        for shape in norm.shapes[:1]:
            if norm.info.centers and norm.region(shape) == 1:
                yield Hit(norm.name, f"a region has one element, for an input of shape {shape}", {"shape": list(shape)})


def sign_only(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        for shape in norm.shapes[:1]:
            size = norm.region(shape)
            if size == (2 if norm.info.centers else 1):
                message = f"a region has {size} element{'s' * (size > 1)}, for an input of shape {shape}"
                yield Hit(norm.name, message, {"shape": list(shape), "elements": size})


RULES = (
    Rule(
        code="NK201",
        severity="warning",
        title="batch norm with too few elements per channel",
        why=(
            "Mean and variance of so few values are mostly chance; training is noisy, and the running statistics do "
            "not fit what training has seen. Accumulating gradients does not enlarge the batch of the norm."
        ),
        source="Wu & He 2018, arXiv:1803.08494, figure 1; ultralytics/yolov5#1630",
        fix=(
            "Use a larger batch per rank; or, on several ranks, normkit.SyncBatchNorm.convert(model): evaluation gives "
            "what it gave. Or group norm, normkit.convert(model, 'group_norm'): outputs change, train again."
        ),
        check=few_elements,
        needs=("example", "batch_size"),
    ),
    Rule(
        code="NK202",
        severity="error",
        title="region of one element",
        why="A value minus itself is zero: the output is the bias whatever the input is, and no gradient passes.",
        source="arithmetic; torch's instance_norm refuses it in training: Expected more than 1 spatial element",
        fix=(
            "Use fewer groups, so that a region holds many values; for pooled features layer norm. Outputs change: "
            "train again."
        ),
        check=one_element,
        needs=("example",),
        of_failure=True,
    ),
    Rule(
        code="NK203",
        severity="warning",
        title="region in which only signs survive",
        why=(
            "Two values less their mean are one number and its negative, divided by its own magnitude: the output is "
            "plus or minus one and the gradient is almost zero."
        ),
        source="arithmetic: (a - m, b - m) / s = (1, -1) sign(a - b)",
        fix="Use fewer groups, so that a region holds many values. Outputs change: train again.",
        check=sign_only,
        needs=("example",),
    ),
)
