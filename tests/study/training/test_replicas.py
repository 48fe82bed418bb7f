"""Many copies of a model trained at once give the results of each copy trained alone."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.study.task import Task
from normkit.study.training.copies import recording, replicas, stacked
from normkit.study.training.design import Design
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Trial

GENERATOR = torch.Generator().manual_seed(0)


X = torch.randn(120, 6, generator=GENERATOR)


Y = (X @ torch.randn(6, 3, generator=GENERATOR)).argmax(1)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_precisions_train(dtype: str) -> None:
    task = Task(net, (X, Y), (X, Y))
    trials = [Trial("measure", "batch_norm", 16, rate, 1) for rate in (0.05, 0.2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs = Trainer().execute(task, Design(("none", "batch_norm"), (16,), 2, 3, 60, dtype=dtype), trials)
    assert [run.state for run in runs] == ["trained", "trained"], runs
    assert all(run.test_error is not None and run.test_error < 0.45 for run in runs)


@pytest.mark.parametrize("method", ["none", "batch_norm", "layer_norm", "weight_norm"])
def test_stacked_copies_are_trained_as_they_are_alone(method: str) -> None:
    task = Task(net, (X, Y), (X, Y))
    plan = Design(("none", method), (8,), 2, 3, 30, window=10)
    trials = [Trial("measure", method, 8, rate, seed) for rate in (0.01, 0.1) for seed in (1, 2, 3)]
    assert stacked.can_be_stacked(lambda seed: task.build(method, seed), task.loss, X[:8], Y[:8])
    together, apart = (Trainer().train(task, plan, trials, stacked=at_once) for at_once in (True, False))
    for a, b in zip(together, apart, strict=True):
        # Sums in another order over 30 steps: rounding grows along the way.
        assert a.losses == pytest.approx(b.losses, rel=2e-2, abs=2e-3)
        assert a.trial == b.trial


def test_dropout_is_not_stacked_and_trains_all_the_same() -> None:
    task = Task(lambda: nn.Sequential(net(), nn.Dropout(0.5)), (X, Y), (X, Y))
    assert not stacked.can_be_stacked(lambda seed: task.build("none", seed), task.loss, X[:8], Y[:8])
    runs = Trainer().execute(
        task, Design(("none",), (8,), 2, 3, 40), [Trial("tune", "none", 8, 0.1, s) for s in (1, 2)]
    )
    assert [run.state for run in runs] != ["failed", "failed"]


def test_numbers_that_are_in_no_buffer_are_not_stacked() -> None:
    class Projected(nn.Module):
        """Its random directions are a plain attribute, another one in each copy."""

        def __init__(self) -> None:
            super().__init__()
            self.directions, self.head = torch.randn(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x @ self.directions)

    task = Task(Projected, (X, Y), (X, Y))
    assert not stacked.can_be_stacked(lambda seed: task.build("none", seed), task.loss, X[:8], Y[:8])


def test_a_step_that_looks_at_values_is_not_written_down() -> None:
    def step(parameters: object, buffers: object, inputs: Tensor, targets: Tensor) -> tuple[Tensor, list[Tensor]]:
        factor = 2.0 if float(inputs[0, 0]) > 0 else 1.0
        return factor * inputs.sum(1), [inputs * factor]

    batches = torch.tensor([[1.0, 2.0], [-1.0, 2.0]])
    assert recording.record(step, ({}, {}, batches, batches)) is None
    assert recording.record(lambda p, b, x, y: (x.sum(1), [x * y]), ({}, {}, batches, batches)) is not None


@pytest.mark.parametrize("fused", [False, True])
def test_parameters_lie_as_their_gradients_come_and_descend_all_the_same(fused: bool) -> None:
    def optimizer(parameters: list[Tensor], rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, rate, momentum=0.9, fused=fused)

    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

    torch.manual_seed(0)
    x, y = torch.randn(8, 4, 2, 6), torch.randint(3, (8, 4, 2))
    settings = [(0.1, ()), (0.1, ()), (0.3, ()), (0.3, ())]
    together, again = (stacked.Stacked([make(i) for i in range(4)], known) for known in [{}] for _ in range(2))
    apart = replicas.Separate([make(i) for i in range(4)])
    for copies in (together, again, apart):
        copies.optimize(optimizer, settings)
        for inputs, targets in zip(x, y, strict=True):
            losses = copies.step(F.cross_entropy, inputs, targets)
    weight = together.parameters["0.weight"]
    assert weight.stride() == (30, 1, 5)
    assert all(part.is_contiguous() and part.grad.is_contiguous() for part, _, _ in together.parts)
    for name, parameter in together.parameters.items():
        assert torch.equal(parameter, again.parameters[name])
        alone = torch.stack([model.get_parameter(name) for model in apart.models])
        torch.testing.assert_close(parameter, alone, rtol=1e-4, atol=1e-5)  # sums in another order, eight steps
    assert losses.isfinite().all()


def test_an_optimizer_that_looks_at_whole_tensors_gets_each_copy_alone() -> None:
    class Clipped(torch.optim.SGD):
        """Its step depends on the norm of all gradients together."""

        def step(self, closure: None = None) -> None:  # type: ignore[override]
            nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 0.1)
            super().step(closure)

    task = Task(net, (X, Y), (X, Y), optimizer=Clipped)
    plan = Design(("none",), (8,), 2, 3, 30, window=10)
    trials = [Trial("tune", "none", 8, 0.1, seed) for seed in (1, 2)]
    together, apart = (Trainer().train(task, plan, trials, stacked=at_once) for at_once in (True, False))
    for a, b in zip(together, apart, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-2)
