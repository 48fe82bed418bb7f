"""The numbers of an experiment: separate seeds for tuning, and which values are refused."""

import pytest

from normkit.errors import ArgumentError
from normkit.study.task.embedded import METHODS
from normkit.study.training import design


def test_tuning_and_evaluation_share_no_seed() -> None:
    used: set[int] = set()
    for seed in range(3):
        p = design.design(METHODS, (2, 32), 800, 7, 400, seed)
        seeds = [*p.tuning_seeds, *p.evaluation_seeds]
        assert len(set(seeds)) == len(seeds) == 802
        assert not used & set(seeds)
        used |= set(seeds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 1}, "seeds must be at least 2, got 1"),
        ({"seeds": 801}, "seeds must be at most 800"),
        ({"trials": 2}, "trials must be at least 3, got 2"),
        ({"steps": 10}, "steps must be at least 40, got 10: a shorter run has no learning curve"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"batch_sizes": ()}, r"there must be a batch size, and none below 1, got \[\]"),
        ({"methods": ("local_response_norm",)}, "compare trains none, unchanged, batch_norm"),
        ({"methods": ("group_nrom",)}, "did you mean 'group_norm'"),
    ],
)
def test_a_design_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    given = {"methods": ("BN",), "batch_sizes": (4,), "seeds": 2, "trials": 3, "steps": 40, "seed": 0} | change
    with pytest.raises(ArgumentError, match=message):
        design.design(**given)  # type: ignore[arg-type]
