"""What is measured and how it will be judged: all of it fixed before the first result is seen."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from normkit.errors import ArgumentError
from normkit.study.arms import method_name
from normkit.study.run import Options
from normkit.study.task import Task

DTYPES = ("float32", "float64", "bfloat16")
GROWTH = 3
"""How many further rates are tried beyond an end of the range where the best one lies."""


@dataclass(frozen=True)
class Design:
    """The experiment on paper.

    Attributes:
        methods: "none" first; all of them share weights and batch order seed by seed.
        batch_sizes: ascending.
        seeds, trials, steps, seed: as in `compare`.
        target_loss: training loss, averaged over the last `window` steps, that counts as arrived.
        window: steps over which a training loss is averaged.
        lowest_rate, highest_rate: ends of the range of learning rates; a rate falls to 0 along a half cosine.
        choose: by what a learning rate is chosen: the error on validation samples, or the training loss.
        tuning_runs: seeds that every learning rate is tried on.
        stack: runs that are trained at once, where the model can be stacked.
        device: where training takes place.
        options: further settings of the optimizer that are tried at the best rate, beside its defaults.
        dtype: "float32" or "float64" throughout, or "bfloat16" for autocast to it.
        alpha: chance of one wrong *better* or *supported* in a whole family of comparisons.
        smallest: the smallest difference of errors that matters.
        gap_images: training images on which the loss in training mode is set against evaluation mode.
        time_rounds: rounds of the timing; in each, every method takes one step.
    """

    methods: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    seeds: int
    trials: int
    steps: int
    seed: int = 0
    target_loss: float = 0.5
    window: int = 20
    lowest_rate: float = 1e-3
    highest_rate: float = 1.0
    choose: Literal["validation", "training"] = "validation"
    tuning_runs: int = 2
    stack: int = 32
    device: str = "cpu"
    dtype: str = "float32"
    options: tuple[Options, ...] = ()
    alpha: float = 0.05
    smallest: float = 0.01
    gap_images: int = 256
    time_rounds: int = 60

    @property
    def rates(self) -> tuple[float, ...]:
        """Learning rates tried, evenly spaced in log; seven of them are half decades.

        >>> design(("none",), (8,), 2, 7, 50, 0).rates[:4]
        (0.001, 0.003162, 0.01, 0.03162)
        """
        return tuple(self._rate(i) for i in range(self.trials))

    def rates_beyond(self, rate: float) -> tuple[float, ...]:
        """The rates to try next if this one is the best so far: further ones, if it is the last at either end.

        >>> design(("none",), (8,), 2, 7, 50, 0).rates_beyond(1.0)
        (3.162, 10.0, 31.62)
        """
        last = self.trials - 1
        if rate == self._rate(last):
            return tuple(self._rate(last + i) for i in range(1, GROWTH + 1))
        return tuple(self._rate(-i) for i in range(1, GROWTH + 1)) if rate == self._rate(0) else ()

    @property
    def wide_rates(self) -> tuple[float, ...]:
        """All rates that can come to be tried, ascending."""
        return tuple(self._rate(i) for i in range(-GROWTH, self.trials + GROWTH))

    def _rate(self, index: int) -> float:
        ratio = (self.highest_rate / self.lowest_rate) ** (1 / (self.trials - 1))
        return float(f"{self.lowest_rate * ratio**index:.4g}")

    @property
    def evaluation_seeds(self) -> tuple[int, ...]:
        """Seeds of weights and batch order behind every result."""
        return tuple(1000 * self.seed + 100 + i for i in range(self.seeds))

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """Seeds the learning rate is chosen on; no result uses any of them."""
        return tuple(1000 * self.seed + 999 - i for i in range(self.tuning_runs))

    @property
    def runs(self) -> int:
        """Training runs in all."""
        each = (self.trials + len(self.options)) * self.tuning_runs + self.seeds
        return each * len(self.methods) * len(self.batch_sizes)

    def rules(self, task: Task) -> tuple[tuple[str, str], ...]:
        """The design in words, for the report: (heading, text)."""
        point = 100 * self.smallest
        return (
            ("Task", task.description),
            (
                "Pairing",
                "For each seed all methods start from the same convolution and linear weights and see the same "
                "batches in the same order; so differences are taken seed by seed.",
            ),
            (
                "Tuning",
                f"{self.steps} steps, rate falling to 0 along a half cosine. "
                f"{self.trials} learning rates from {self.rates[0]:g} to {self.rates[-1]:g} for every method at "
                f"every batch size, each on {self.tuning_runs} seeds; the lowest mean validation error wins "
                f"(validation loss breaks ties). Where the best rate is the first or last, {GROWTH} more are "
                "tried beyond it. "
                "Results use other seeds.",
            ),
            (
                "Measurement",
                f"{self.seeds} further seeds at the chosen rate. The test images are looked at only at the end of "
                "these runs. Every batch size takes the same number of steps, so small batches see fewer images: "
                "compare methods at one batch size, not batch sizes of one method.",
            ),
            (
                "Runs that fail",
                f"A run whose loss is not finite, or at the end no better than guessing, counts as not trained; it "
                f"stays in every mean. One that breaks off is charged with the error of guessing, "
                f"{100 * task.chance:g} %.",
            ),
            (
                "Steps to target",
                f"First step at which the training loss, averaged over {self.window} steps, is at most "
                f"{self.target_loss:g}. A run that does not arrive gives a bound, never a number.",
            ),
            (
                "Train/eval gap",
                f"Loss in evaluation mode minus loss in training mode: same weights, same {self.gap_images} training "
                "images, batches of the training size. The same pass recomputes running statistics for the "
                "recalibrated error.",
            ),
            (
                "Time per step",
                f"Forward, backward and update, one thread, {self.time_rounds} rounds in one process; each round "
                "times every method once. Median of the ratios to no norm.",
            ),
            (
                "Intervals",
                "95 % t intervals over seeds (order statistics for times). They cover weights and batch order; the "
                "images are the same throughout, so other images would add to them.",
            ),
            (
                "The answer",
                "At each batch size the method with the lowest mean test error leads; one that never trained cannot "
                "lead and is *behind*. One method is *better* than "
                f"another if the paired t test, Holm-corrected over all pairs at all batch sizes, gives p < "
                f"{self.alpha:g} and the mean difference is at least {point:g} point; a method that any other is "
                "better than is *behind*. *Equal* to the leader is one whose simultaneous interval of the difference "
                f"lies within ±{point:g} point. Everything else is *not resolved*, and is said to be.",
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields and what follows from them."""
        derived = {
            "rates": self.rates,
            "evaluation_seeds": self.evaluation_seeds,
            "tuning_seeds": self.tuning_seeds,
        }
        return asdict(self) | derived


def design(
    methods: tuple[str, ...], batch_sizes: tuple[int, ...], seeds: int, trials: int, steps: int, seed: int
) -> Design:
    """A checked design: names resolved, "none" first, batch sizes ascending, nothing twice.

    >>> design(("BN", "none", "batch_norm"), (64, 4), 2, 3, 50, 0).methods
    ('none', 'batch_norm')
    """
    names = dict.fromkeys(["none", *(method_name(name) for name in methods)])
    lowest = {
        "seeds": (2, "an interval needs two"),
        "trials": (3, "of two, either is the edge of what was tried"),
        "steps": (40, "a shorter run has no curve"),
        "seed": (0, "a generator takes no other"),
    }
    given = {"seeds": seeds, "trials": trials, "steps": steps, "seed": seed}
    for name, (bound, why) in lowest.items():
        if given[name] < bound:
            raise ArgumentError(f"{name} must be at least {bound}, got {given[name]}: {why}")
    if seeds > 800:
        raise ArgumentError(f"seeds must be at most 800, got {seeds}: those above are kept for tuning")
    if not batch_sizes or min(batch_sizes) < 1:
        raise ArgumentError(
            f"there must be a batch size, and none below 1, got {list(batch_sizes)}: give 2 and 32, say"
        )
    return Design(tuple(names), tuple(sorted(set(batch_sizes))), seeds, trials, steps, seed)
