"""How a task is scored: its metric and direction, over whole sets, and what guessing gives."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normkit.errors import ArgumentError, NormkitError
from normkit.study.task.metric import ERROR, LOSS, Metric, named
from normkit.study.task.part import Part
from normkit.study.task.scoring import direction, guess
from normkit.study.task.scoring.guess import Guess
from normkit.study.task.scoring.prediction import OTHER, Prediction, labels_of, recognised
from normkit.study.task.scoring.scores import (
    MeanScore,
    Score,
    WholeScore,
    is_object,
    mean_weight,
    number,
    of_mean,
    of_metric,
    samples,
)

ELEMENTS = 1 << 24
"""Numbers in the made-up outputs of a constant guess, at most."""
SEEDS = 3
"""Untrained models whose best metric is that of guessing, if no constant guess is known."""


@dataclass(frozen=True)
class Scheme:
    """How a task is scored.

    Attributes:
        loss, metric, name, share, higher: the task's loss, metric, metric_name, share and higher_is_better as given.
        parts: the data by name: "train", "validation", "test".
        outputs: (seed, inputs) -> the outputs of an untrained model.
    """

    loss: Callable[[Any, Any], Any]
    metric: Any
    name: str
    share: bool | None
    higher: bool | None
    parts: Mapping[str, Part]
    outputs: Callable[[int, Any], Any]

    @cached_property
    def prediction(self) -> Prediction:
        """What the outputs of the model predict."""
        outputs, targets = self._sample
        return recognised(outputs, targets, self.loss)

    @cached_property
    def higher_is_better(self) -> bool:
        """The direction of the metric.

        Raises:
            ArgumentError: the metric states another one, or its name looks like the other one and none is given.
        """
        stated = False if self.metric is None else direction.known_higher(self.metric)
        name = self._given_name
        if self.higher is not None:
            if stated not in (None, self.higher):
                raise ArgumentError(
                    f"higher_is_better must be the direction of the metric, got {self.higher}, but of {name or 'it'} "
                    f"{'higher' if stated else 'lower'} values are better: leave higher_is_better out"
                )
            return self.higher
        if stated is None and direction.looks_higher(name):
            raise ArgumentError(
                f"a metric named {name!r} needs its direction, got higher_is_better=None: say True if higher values "
                "are better, or False if lower ones are"
            )
        return bool(stated)

    @cached_property
    def reported(self) -> Metric:
        """The metric's name, and how its values are written."""
        name, higher = self._given_name, self.higher_is_better
        nonnegative = direction.looks_nonnegative(self.metric or self.loss, name)
        if self.metric is not None:
            share = self._looks_share(name) if self.share is None else self.share
            usual = LOSS if self.metric is self.loss and not self.name else None
            return Metric(usual.name if usual else named(name), share, higher, nonnegative)
        usual = ERROR if self.prediction.has_errors else LOSS
        return Metric(
            named(self.name) if self.name else usual.name,
            usual.share if self.share is None else self.share,
            higher,
            nonnegative and usual is LOSS,
        )

    @property
    def _given_name(self) -> str:
        return self.name or ("" if self.metric is None else direction.name_of(self.metric))

    def _looks_share(self, name: str) -> bool:
        """Whether the name is that of a fraction, and its values too: accuracy may be given in percent."""
        if not direction.looks_share(name):
            return False
        ends = self._ends("test") or (self._value(*self._sample),)
        return all(0 <= value <= 1 for value in ends if math.isfinite(value))

    # Scores

    def score(self) -> Score:
        """A new score of the metric."""
        if self.metric is not None:
            return of_metric(self.metric)
        if self.prediction.has_errors:
            return MeanScore(self.prediction.errors)
        return self.loss_score() if self._loss_is_mean else WholeScore(self.loss)

    def loss_score(self) -> MeanScore:
        """A new score of the loss: its mean, which counts what the loss counts if it is one of torch's."""
        return of_mean(self.loss, mean_weight(self.loss) or (lambda _, targets: float(samples(targets))))

    @cached_property
    def _loss_is_mean(self) -> bool:
        """Whether the loss of some samples is the mean of those of its parts."""
        if mean_weight(self.loss) is not None:
            return True
        outputs, targets = self._sample
        count = samples(targets)
        cut = max(1, count // 3)
        ends = [(0, cut), (cut, count)] if count > 1 else [(0, count)]
        with torch.no_grad():
            whole = number("loss", self.loss(outputs, targets))
            parts = math.fsum(
                (end - start) / count * number("loss", self.loss(*_cut((outputs, targets), start, end)))
                for start, end in ends
            )
        return math.isclose(whole, parts, rel_tol=1e-3, abs_tol=1e-6)

    def _scored(self, outputs: Any, targets: Any) -> Any:
        score = self.score()
        with torch.no_grad():
            score.update(outputs, targets)
            return score.compute()

    def __getstate__(self) -> dict[str, Any]:
        """Without samples, so that a worker gets only what was found from them."""
        return {name: value for name, value in vars(self).items() if name not in ("_sample", "_drawn")}

    # Guessing

    def guess(self, name: str) -> float:
        """The metric of guessing on a part: that of the best constant outputs, else of untrained models."""
        return self._guess(name).value

    def beats_guess(self, name: str, value: float) -> bool:
        """Whether a metric on a part is better than guessing by its interval."""
        metric = self.reported
        return guess.beats(
            value,
            self._guess(name),
            len(self.parts[name]),
            share=metric.share,
            higher=metric.higher_is_better,
        )

    @cached_property
    def _guesses(self) -> dict[str, Guess]:
        return {}

    def _guess(self, name: str) -> Guess:
        if name not in self._guesses:
            self._guesses[name] = self._made_guess(name)
        return self._guesses[name]

    def _made_guess(self, name: str) -> Guess:
        better = max if self.higher_is_better else min
        constants = self._constants(name)
        if constants:
            value = better(constants)
            ends = self._ends(name)
            return Guess(value, abs(value - ends[0]) if ends else abs(value))
        value = better(self._untrained(name, seed) for seed in range(SEEDS))
        return Guess(value, abs(value))

    @property
    def _constant_is_known(self) -> bool:
        """Whether the loss says that outputs which equal the targets are right; they may be logarithms of them."""
        if self.prediction.kind != "values":
            return self.prediction is not OTHER and self.prediction.kind != "other"
        labels = labels_of(self._sample[1])
        assert labels is not None
        constant = next(self.prediction.constants(labels))
        try:
            with torch.no_grad():
                right = float(self.loss(self.prediction.perfect(labels), self._sample[1]))
                flat = float(self.loss(self.prediction.repeated(constant, labels), self._sample[1]))
        except Exception:
            return False
        return right < 0.05 * flat

    def _targets(self, name: str) -> Any:
        """The targets of a part; of a data set that must load them, those of some random samples."""
        if name not in self._drawn:
            part = self.parts[name]
            targets = guess.known_targets(part)
            self._drawn[name] = part.take(guess.representative(part, guess.LOADED))[1] if targets is None else targets
        return self._drawn[name]

    @cached_property
    def _drawn(self) -> dict[str, Any]:
        return {}

    def _constants(self, name: str) -> list[float]:
        """The metric of constant outputs on a part, as far as it is a number."""
        targets = labels_of(self._targets(name)) if self._constant_is_known else None
        if targets is None:
            return []
        made = self.prediction
        if self.metric is None and made.has_errors:
            return [made.least_errors(targets)]
        few = guess.spread(targets, ELEMENTS // max(1, made.classes))
        values = [self._value(made.repeated(each, few), few) for each in made.constants(targets)]
        return [value for value in values if math.isfinite(value)]

    def _ends(self, name: str) -> tuple[float, float] | None:
        """The metric of perfect outputs and of the most plausible constant ones; None if they are not known."""
        targets = labels_of(self._targets(name)) if self._constant_is_known else None
        if targets is None:
            return None
        made = self.prediction
        few = guess.spread(targets, ELEMENTS // max(1, made.classes))
        constant = next(made.constants(few))
        ends = self._value(made.perfect(few), few), self._value(made.repeated(constant, few), few)
        return ends if all(map(math.isfinite, ends)) else None

    def _value(self, outputs: Any, targets: Any) -> float:
        """The metric of made-up outputs; NaN if it cannot be computed, as a correlation with a constant."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return number("metric", self._scored(outputs, targets))
        except Exception:
            return math.nan

    def _untrained(self, name: str, seed: int) -> float:
        part = self.parts[name]
        inputs, targets = part.take(guess.representative(part, guess.LOADED))
        outputs = self.outputs(seed, inputs)
        try:
            value = self._scored(outputs, targets)
        except NormkitError:
            raise
        except Exception as error:
            raise ArgumentError(
                f"metric must give a number on the {name} data, got {type(error).__name__} ({error}) from an untrained "
                f"model: it is called with outputs and targets of all samples at once; does {name} have every class?"
            ) from error
        return number("metric", value, samples(targets))

    # Checks

    @cached_property
    def _sample(self) -> tuple[Any, Any]:
        """Outputs of an untrained model for some training samples, and their targets."""
        part = self.parts["train"]
        inputs, targets = part.take(guess.representative(part, 64))
        return self.outputs(0, inputs), targets

    def check(self) -> None:
        """Find mistakes before hours of training.

        Raises:
            ArgumentError, ShapeError: the metric is no finite number, or its values contradict its direction.
        """
        higher = self.higher_is_better
        for name in ("test", "validation"):
            self._untrained(name, 0)
        ends = self._ends("test")
        if ends and ends[0] != ends[1] and (ends[0] > ends[1]) != higher:
            better = "higher" if ends[0] > ends[1] else "lower"
            raise ArgumentError(
                f"higher_is_better must be the direction of the metric, got {self.higher}, but the metric is "
                f"{ends[0]:.4g} for perfect outputs and {ends[1]:.4g} for constant ones, so {better} values are "
                f"better: say higher_is_better={better == 'higher'}"
            )
        for name in ("validation", "test"):
            self.guess(name)


def check_metric(name: str, metric: Any) -> None:
    """Refuse what is no metric.

    Args:
        name: the name of the argument.
        metric: what was given.

    Raises:
        ArgumentError: it can be neither called nor updated, or takes targets first.
    """
    function = getattr(metric, "func", metric)
    if not callable(metric) and not is_object(metric):
        raise ArgumentError(
            f"{name} must be a function of (outputs, targets), or an object with update(outputs, targets) and "
            f"compute() as in torchmetrics, got {metric!r}"
        )
    if str(getattr(function, "__module__", "")).startswith("sklearn."):
        called = direction.name_of(metric)
        raise ArgumentError(
            f"{name} must take (outputs, targets), but {called} of scikit-learn takes the targets first: write "
            f"lambda outputs, targets: {called}(targets, outputs.argmax(1)), say, with metric_name={called!r}"
        )


def _cut(tree: Any, start: int, end: int) -> Any:
    return pytree.tree_map(lambda t: t[start:end] if isinstance(t, Tensor) and t.dim() else t, tree)
