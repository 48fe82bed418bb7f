"""One training run: the same batches for every method, what is measured, and how a run that fails is scored."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from normkit.study.suite import networks
from normkit.study.task import Part, Task, embedded
from normkit.study.task.embedded import METHODS
from normkit.study.training import design
from normkit.study.training.copies import replicas
from normkit.study.training.cost import Timing, time_steps
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Run, Trial, batches

DIGITS = embedded.digits()


def plan(*methods: str, steps: int = 40, seeds: int = 2) -> design.Design:
    return replace(design.design(methods, (4,), seeds, 3, steps, 0), gap_images=32, time_rounds=3)


def convnet(method: str, seed: int) -> nn.Sequential:
    return networks.convnet(method, seed, channels=embedded.CHANNELS)


def one(work: Task, plan: design.Design, trial: Trial) -> Run:
    """The run of a trial without its time; errors are raised."""
    return Trainer().train(work, plan, [trial], stacked=False)[0]


def test_every_method_sees_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {}
    step = replicas.Separate.step_over

    def watched(copies: replicas.Separate, loss: replicas.Loss, batches: list[replicas.Batch]) -> Tensor:
        seen.setdefault(current, []).extend(inputs.clone() for inputs, _ in batches)
        return step(copies, loss, batches)

    monkeypatch.setattr(replicas.Separate, "step_over", watched)
    for current in METHODS:
        one(DIGITS, plan("BN"), Trial("tune", current, 4, 0.01, 5))
    for current in METHODS[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen["none"], seen[current], strict=True))
    current = "other seed"
    one(DIGITS, plan("BN"), Trial("tune", "none", 4, 0.01, 6))
    assert not torch.equal(seen["none"][0], seen["other seed"][0])


def test_batches_pass_over_all_images_before_any_comes_again() -> None:
    order = batches(10, 4, 5, seed=3).flatten()
    assert order[:10].sort().values.tolist() == list(range(10))
    assert order[10:].sort().values.tolist() == list(range(10))


def test_tuning_never_looks_at_the_test_images() -> None:
    trial = Trial("tune", "batch_norm", 4, 0.03, 0)
    nothing = torch.full_like(DIGITS.test.data[0], torch.nan)
    torn = replace(DIGITS, test=Part((nothing, DIGITS.test.data[1])))
    tuned = one(torn, plan("BN"), trial)
    assert (tuned.test_error, tuned.recalibrated_error, tuned.gap) == (None, None, None)
    assert tuned == one(DIGITS, plan("BN"), trial)


def test_a_run_is_repeatable_and_learns() -> None:
    p = plan("BN", steps=120)
    first, second = (one(DIGITS, p, Trial("measure", "batch_norm", 32, 0.1, 100)) for _ in range(2))
    assert first == second
    assert first.state == "trained"
    assert first.test_error is not None
    # Guessing would be 0.9.
    assert first.test_error < 0.3


def test_only_running_statistics_make_a_gap() -> None:
    p = plan("BN", "GN", steps=60)
    batch, group = (one(DIGITS, p, Trial("measure", m, 4, 0.03, 100)) for m in ("batch_norm", "group_norm"))
    assert batch.gap is not None
    assert abs(batch.gap) > 0.01
    assert batch.recalibrated_error is not None
    assert group.gap is not None
    # Means over 32 losses of about 1 in fp32, summed in another order.
    assert abs(group.gap) < 1e-5
    assert group.recalibrated_error is None


def test_a_run_that_breaks_off_is_scored_at_chance_level() -> None:
    broken = one(DIGITS, plan("BN"), Trial("measure", "none", 4, 1e9, 100))
    assert broken.state == "untrained"
    # The most frequent digit is right most often.
    assert broken.test_error == pytest.approx(1 - DIGITS.test.data[1].bincount().max() / len(DIGITS.test))
    assert broken.train_error == pytest.approx(1 - DIGITS.train.data[1].bincount().max() / len(DIGITS.train))
    assert "the loss was" in broken.message
    assert len(broken.losses) < 40


def test_a_run_that_breaks_in_evaluation_alone_is_scored_at_chance_level() -> None:
    class Far(nn.Linear):
        seen = 0

        def forward(self, x: Tensor) -> Tensor:
            self.seen += self.training
            return super().forward(x) * (1e30 if self.seen and not self.training else 1)

    x = torch.randn(32, 4)
    work = Task(lambda: Far(4, 4), (x, x), (x, x), loss=nn.functional.mse_loss, metric=nn.functional.mse_loss)
    broken = one(work, plan("BN"), Trial("measure", "none", 4, 0.01, 100))
    assert broken.state == "untrained"
    assert broken.message == "the loss in evaluation was inf"
    assert broken.test_error == work.chance


def test_a_run_that_never_leaves_guessing_is_untrained() -> None:
    idle = one(DIGITS, plan("BN"), Trial("tune", "batch_norm", 4, 1e-9, 0))
    assert idle.state == "untrained"
    assert idle.message == "at the end no better than guessing"


def test_times_are_taken_of_every_method_in_turn() -> None:
    p = plan("BN", "GN")
    seconds = time_steps(DIGITS, p, Timing(4, p.methods))
    assert set(seconds) == {"none", "batch_norm", "group_norm"}
    assert all(len(taken) == 3 and min(taken) > 0 for taken in seconds.values())
