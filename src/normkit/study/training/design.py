"""The numbers of an experiment: what is measured and how it is judged, fixed before the first result."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from normkit.errors import ArgumentError
from normkit.study.task.variants import method_name
from normkit.study.training.trial import Options

DTYPES = ("float32", "float64", "bfloat16")
MOST_SEEDS = 800
FIRST_PART = 0.1
"""The part of the steps after which rates are discarded."""
SHORTEST = 200
"""With fewer steps in all, no rate is discarded: the first part would be too short to judge it."""
GROWTH = 3
"""The number of rates to try beyond an end of the range, if the best one is at that end."""


@dataclass(frozen=True)
class Design:
    """The numbers of an experiment.

    Attributes:
        methods: "none" first; for each seed all of them have the same weights and the same order of batches.
        batch_sizes: in ascending order.
        seeds, trials, steps, seed: as in `compare`; `trials` is the number of learning rates.
        target_loss: the training loss that a run should reach, averaged over the last `window` steps; None for one
            that is computed from the losses at each batch size.
        window: number of steps over which a training loss is averaged.
        lowest_rate, highest_rate: ends of the range of learning rates; during a run a rate falls to 0 along a half
            cosine.
        choose: the criterion for a learning rate: the error on validation samples, or the training loss.
        tuning_runs: number of seeds for each learning rate.
        stack: number of trials in a batch of trials, which is trained at once if copies of the model can be stacked.
        device: the device for training.
        options: settings of the optimizer to try at the best rate, in addition to its defaults.
        dtype: "float32" or "float64" throughout, or "bfloat16" for autocast to it.
        alpha: probability of at least one wrong *better* or *supported* in a whole family of comparisons.
        smallest: the smallest difference of errors that matters.
        higher_is_better: the direction of the metric, which is called the error here.
        chance: the metric of guessing on the test data, if it is known; a method that is no better has not trained.
        confirm: whether methods share rates that cannot be told apart, and a difference is confirmed at other rates.
        discard: whether rates are discarded after the first tenth of the steps, if they are hopeless.
        gap_images: number of training samples on which the losses of training and evaluation mode are compared.
        time_rounds: number of rounds of the timing; in each round every method takes one step.
        steps_by_size: the steps at each batch size, if a run has a number of epochs; `steps` is the largest of them.
    """

    methods: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    seeds: int
    trials: int
    steps: int
    seed: int = 0
    target_loss: float | None = 0.5
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
    higher_is_better: bool = False
    chance: float | None = None
    confirm: bool = False
    discard: bool = False
    gap_images: int = 256
    time_rounds: int = 60
    steps_by_size: tuple[tuple[int, int], ...] = ()

    @property
    def sign(self) -> int:
        """1 if a lower metric is better, else -1: `sign * (b - a)` is positive if a is better than b."""
        return -1 if self.higher_is_better else 1

    def steps_at(self, batch_size: int) -> int:
        """The steps of a run at a batch size.

        >>> plan = design(("none",), (8,), 2, 7, 50, 0)
        >>> plan.steps_at(8)
        50
        """
        return dict(self.steps_by_size).get(batch_size, self.steps)

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates to try, evenly spaced in log; seven of them are half a decade apart.

        >>> design(("none",), (8,), 2, 7, 50, 0).rates[:4]
        (0.001, 0.003162, 0.01, 0.03162)
        """
        return tuple(self._rate(i) for i in range(self.trials))

    def rates_beyond(self, rate: float) -> tuple[float, ...]:
        """The rates to try next if this one is the best so far: those beyond it, if it is at an end of the range.

        >>> design(("none",), (8,), 2, 7, 50, 0).rates_beyond(1.0)
        (3.162, 10.0, 31.62)
        """
        last = self.trials - 1
        if rate == self._rate(last):
            return tuple(self._rate(last + i) for i in range(1, GROWTH + 1))
        return tuple(self._rate(-i) for i in range(1, GROWTH + 1)) if rate == self._rate(0) else ()

    @property
    def discards(self) -> bool:
        """Whether rates are discarded early: only if that saves runs, and if the first part is long enough."""
        return self.discard and self.steps >= SHORTEST and self.trials > 3

    def neighbours(self, rate: float) -> tuple[float, ...]:
        """The next lower and the next higher rate, as far as they may be tried.

        >>> design(("none",), (8,), 2, 7, 50, 0).neighbours(1.0)
        (0.3162, 3.162)
        """
        place = self.wide_rates.index(rate)
        return self.wide_rates[max(place - 1, 0) : place] + self.wide_rates[place + 1 : place + 2]

    @property
    def wide_rates(self) -> tuple[float, ...]:
        """All rates that may be tried, ascending."""
        return tuple(self._rate(i) for i in range(-GROWTH, self.trials + GROWTH))

    def _rate(self, index: int) -> float:
        ratio = (self.highest_rate / self.lowest_rate) ** (1 / (self.trials - 1))
        return float(f"{self.lowest_rate * ratio**index:.4g}")

    @property
    def evaluation_seeds(self) -> tuple[int, ...]:
        """Seeds of weights and batch order for the results."""
        return self.seeds_of(self.seeds)

    def seeds_of(self, count: int) -> tuple[int, ...]:
        """The first evaluation seeds."""
        return tuple(1000 * self.seed + 100 + i for i in range(count))

    def has_seed(self, seed: int) -> bool:
        """Whether a seed is one of this design's, also with more evaluation seeds, and not one of another `seed`.

        >>> plan = design(("none",), (8,), 2, 7, 50, seed=1)
        >>> plan.has_seed(1100), plan.has_seed(100)
        (True, False)
        """
        return seed // 1000 == self.seed

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """Seeds for the choice of the learning rate; no result uses any of them."""
        return tuple(1000 * self.seed + 999 - i for i in range(self.tuning_runs))

    @property
    def runs(self) -> int:
        """The total number of training runs, short ones included; if rates are discarded, about three are left."""
        rates = self.trials + (3 if self.discards else 0)
        each = (rates + len(self.options)) * self.tuning_runs + self.seeds
        return each * len(self.methods) * len(self.batch_sizes)

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the rates and seeds computed from them."""
        derived = {
            "rates": self.rates,
            "evaluation_seeds": self.evaluation_seeds,
            "tuning_seeds": self.tuning_seeds,
        }
        return asdict(self) | derived


def design(
    methods: tuple[str, ...], batch_sizes: tuple[int, ...], seeds: int, trials: int, steps: int, seed: int
) -> Design:
    """Make a design and check it: names resolved, "none" first, batch sizes ascending, without duplicates.

    >>> design(("BN", "none", "batch_norm"), (64, 4), 2, 3, 50, 0).methods
    ('none', 'batch_norm')
    """
    found = mistakes(batch_sizes, seeds, trials, steps, seed)
    if found:
        raise ArgumentError("; ".join(found))
    names = dict.fromkeys(["none", *(method_name(name) for name in methods)])
    return Design(tuple(names), tuple(sorted(set(batch_sizes))), seeds, trials, steps, seed)


def mistakes(batch_sizes: tuple[int, ...], seeds: int, trials: int, steps: int, seed: int) -> list[str]:
    """What is wrong with the numbers of a design, one sentence for each of them."""
    lowest = {
        "seeds": (seeds, 2, "an interval needs two"),
        "trials": (trials, 3, "the best of two is always at an end of the range"),
        "steps": (steps, 40, "a shorter run has no learning curve"),
        "seed": (seed, 0, "a random generator takes no negative seed"),
    }
    found = [
        f"{name} must be at least {bound}, got {given}: {why}"
        for name, (given, bound, why) in lowest.items()
        if given < bound
    ]
    if seeds > MOST_SEEDS:
        found.append(f"seeds must be at most {MOST_SEEDS}, got {seeds}: those above are reserved for tuning")
    if not batch_sizes or min(batch_sizes) < 1:
        found.append(f"there must be a batch size, and none below 1, got {list(batch_sizes)}: give 2 and 32, say")
    return found
