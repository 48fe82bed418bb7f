"""What the outputs of a model predict: a class, one of two classes, or values.

It is found from outputs, targets and the values of the loss, because cross entropy has many forms: a function, a
module, a partial or a lambda.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Loss = Callable[[Any, Any], Any]

SURE = 30.0
"""A logit whose probability is 1 up to rounding."""
FEW = 32
"""Up to this number of classes, a constant guess of each one is scored."""


@dataclass(frozen=True)
class Prediction:
    """What outputs predict.

    Attributes:
        kind: "classes" (one output for each class, along `dim`), "logits" or "probabilities" (of one of two classes),
            "values" (outputs are like targets), or "other".
        dim: the dimension of the classes, 1 or -1.
        classes: their number.
        ignored: the targets that the loss ignores; others that are no class are ignored too.
        shape: of the outputs of one sample.
    """

    kind: Literal["classes", "logits", "probabilities", "values", "other"]
    dim: int = 1
    classes: int = 0
    ignored: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()

    @property
    def has_errors(self) -> bool:
        """Whether an output is right or wrong."""
        return self.kind in ("classes", "logits", "probabilities")

    def counted(self, targets: Tensor) -> Tensor:
        """Which targets are classes that the loss does not ignore."""
        counted = (targets >= 0) & (targets < self.classes)
        for value in self.ignored:
            counted &= targets != value
        return counted

    def errors(self, outputs: Any, targets: Any) -> tuple[float, float]:
        """The number of wrong outputs, and the number of those that count.

        >>> made = Prediction("classes", classes=2, shape=(2,))
        >>> made.errors(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        (1.0, 2.0)
        """
        scores, labels = scores_of(outputs), labels_of(targets)
        assert scores is not None
        assert labels is not None
        if self.kind == "classes":
            labels = self.flat(labels)
            counted = self.counted(labels)
            return float(((scores.argmax(self.dim) != labels) & counted).sum()), float(counted.sum())
        threshold = 0.0 if self.kind == "logits" else 0.5
        return float(((scores > threshold) != (labels > 0.5).view(scores.shape)).sum()), float(labels.numel())

    def flat(self, targets: Tensor) -> Tensor:
        """Targets of classes without a dimension of size 1 for them: (N, 1, d...) as (N, d...)."""
        if self.kind != "classes" or targets.dim() < len(self.shape) + 1 or targets.shape[1] != 1:
            return targets
        return targets.squeeze(1)

    def least_errors(self, targets: Tensor) -> float:
        """The fraction of errors of the best constant outputs."""
        if self.kind == "classes":
            labels = targets[self.counted(targets)]
            return 1 - float(torch.bincount(labels).max()) / len(labels) if len(labels) else math.nan
        ones = (targets > 0.5).double().mean(0)
        return float(torch.minimum(ones, 1 - ones).mean())

    def constants(self, targets: Tensor) -> Iterator[Tensor]:
        """Outputs of a model that gives the same for every sample, fitted to these targets; the most plausible first.

        Those of classes are the logarithms of their frequencies, and each class alone.
        """
        if self.kind == "classes":
            labels = targets[self.counted(targets)]
            frequencies = torch.bincount(labels, minlength=self.classes).double() / max(1, len(labels))
            yield frequencies.clamp_min(1e-12).log().float()
            yield from SURE * torch.eye(self.classes) if self.classes <= FEW else ()
            return
        # Evenly spaced samples, because a median sorts a copy.
        some = targets[:: max(1, len(targets) // 4096)].double().reshape(-1, *self.shape)
        mean = some.mean(0)
        if self.kind == "values":
            yield mean.float()
            yield some.quantile(0.5, dim=0).float() if some.numel() < 1 << 24 else some.median(0).values.float()
            return
        for share in (mean, torch.zeros_like(mean), torch.ones_like(mean)):
            yield (torch.logit(share, 1e-12) if self.kind == "logits" else share).float()

    def repeated(self, constant: Tensor, targets: Tensor) -> Tensor:
        """The outputs of a model that gives a constant, for these targets."""
        if self.kind != "classes":
            return constant.expand(len(targets), *self.shape)
        outputs = constant.expand(*self.flat(targets).shape, self.classes)
        return outputs if self.dim == -1 else outputs.movedim(-1, 1)

    def perfect(self, targets: Tensor, sure: float = 10.0) -> Tensor:
        """Outputs that are right for each target, with logits of this size."""
        if self.kind == "classes":
            labels = self.flat(targets).long().clamp(0, self.classes - 1)
            outputs = sure * torch.nn.functional.one_hot(labels, self.classes)
            return outputs.float() if self.dim == -1 else outputs.float().movedim(-1, 1)
        outputs = targets.float().view(len(targets), *self.shape)
        return sure * (2 * outputs - 1) if self.kind == "logits" else outputs


OTHER = Prediction("other")


def scores_of(outputs: Any) -> Tensor | None:
    """The tensor of the predictions: the outputs themselves, or their part "logits"."""
    return _tensor(outputs, "logits")


def labels_of(targets: Any) -> Tensor | None:
    """The tensor of the targets: the targets themselves, or their part "labels"."""
    return _tensor(targets, "labels")


def _tensor(tree: Any, name: str) -> Tensor | None:
    if isinstance(tree, Tensor):
        return tree
    found = tree.get(name) if isinstance(tree, Mapping) else getattr(tree, name, None)
    return found if isinstance(found, Tensor) else None


def recognised(outputs: Any, targets: Any, loss: Loss) -> Prediction:
    """What these outputs predict.

    Args:
        outputs, targets: of some samples, of every class if possible.
        loss: (outputs, targets) -> a number; called with other outputs and targets of these shapes.
    """
    scores, labels = scores_of(outputs), labels_of(targets)
    if scores is None or labels is None or not labels.numel() or not scores.is_floating_point() or not scores.dim():
        return OTHER
    probe = _Probe(loss, scores) if scores is outputs and labels is targets else None
    whole = not labels.is_floating_point() and not labels.is_complex()
    if whole and (found := _classes(scores.detach(), labels, probe)):
        return found
    if len(scores) != len(labels) or scores.numel() != labels.numel() or labels.is_complex():
        return OTHER
    values = Prediction("values", shape=tuple(scores.shape[1:]))
    return (probe and _two_classes(values, labels, probe)) or values


class _Probe:
    """The values of a loss for made-up outputs; NaN if it raises an error."""

    def __init__(self, loss: Loss, like: Tensor) -> None:
        self.loss, self.like = loss, like

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        value = self.raw(outputs, targets)
        return math.nan if value is None else value

    def raw(self, outputs: Tensor, targets: Tensor) -> float | None:
        """The value, which may be NaN; None if the loss raises an error."""
        try:
            with torch.no_grad():
                return float(self.loss(outputs.to(self.like), targets))
        except Exception:
            return None


def _without_class(labels: Tensor, scores: Tensor) -> Tensor:
    """Targets of shape (N, 1, d...) as (N, d...)."""
    same = labels.dim() == scores.dim() and labels.dim() > 1 and labels.shape[1] == 1 != scores.shape[1]
    return labels.squeeze(1) if same else labels


def _classes(scores: Tensor, labels: Tensor, probe: _Probe | None) -> Prediction | None:
    flat = _without_class(labels, scores)
    dims = [
        dim
        for dim in (1, -1)[: scores.dim() - 1]
        if scores.shape[dim] > 1 and tuple(flat.shape) == tuple(scores.select(dim, 0).shape)
    ]
    made = [Prediction("classes", dim, scores.shape[dim], (), tuple(scores.shape[1:])) for dim in dims]
    if len(made) == 2 and probe:
        # As many positions as classes: where the classes are, outputs that are right have a smaller loss.
        made.sort(key=lambda p: probe(p.perfect(flat), labels))
    for prediction in made[:1]:
        outside = [int(v) for v in flat.unique() if not 0 <= v < prediction.classes]
        usual = {0, prediction.classes - 1, int(flat.flatten().mode().values)}
        if probe is None:
            return prediction if set(outside) <= {-100} else None
        ignored = tuple(v for v in sorted({*outside, *usual}) if _is_ignored(v, prediction, flat, labels, probe))
        if set(outside) <= set(ignored):
            return Prediction("classes", prediction.dim, prediction.classes, ignored, prediction.shape)
    return None


def _is_ignored(value: int, prediction: Prediction, flat: Tensor, labels: Tensor, probe: _Probe) -> bool:
    """Whether a loss of targets that are all this value does not depend on the outputs: it is 0, or 0 / 0."""
    if flat.dtype is torch.bool or (flat.dtype is torch.uint8 and not 0 <= value < 256):
        return False
    same = torch.full_like(labels, value)
    # Outputs that are wrong for the value if it is a class.
    outputs = -prediction.perfect(torch.full_like(flat, value))
    found = probe.raw(outputs, same)
    return found is not None and (found == 0 or math.isnan(found))


def _two_classes(values: Prediction, labels: Tensor, probe: _Probe) -> Prediction | None:
    """Logits or probabilities, if that is what the loss expects."""
    if not bool(((labels == 0) | (labels == 1)).all()) or len(labels.unique()) < 2:
        return None
    ones = labels.double().view(-1, *values.shape)
    low, middle = 1e-3, probe(torch.zeros_like(ones), labels)
    # Cross entropy vanishes for outputs that are sure and right.
    sure = probe(SURE * (2 * ones - 1), labels) < low < middle < probe(SURE * (1 - 2 * ones), labels)
    # One over several classes vanishes for these too, and one of probabilities that limits its outputs.
    if sure and probe(SURE * ones, labels) > low:
        return Prediction("logits", shape=values.shape)
    if probe(ones, labels) < low and probe(1 - ones, labels) > 10:
        return Prediction("probabilities", shape=values.shape)
    return None
