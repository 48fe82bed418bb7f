"""A model that is run to look at it is called as the user calls it, and is left as it was."""

from __future__ import annotations

import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normkit.evaluation import call, evaluating, keeping_modes, preserving
from normkit.merging import merged_variance, merging_weights


class Pair(nn.Module):
    """Takes two inputs, draws numbers, and keeps a count and its last input in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        self.register_buffer("last", x)
        self.count += 1
        random.random(), np.random.rand(), torch.rand(1)
        return self.norm(x if other is None else x + other)


def state(model: nn.Module) -> list[object]:
    values = {name: value.tolist() for name, value in model.state_dict().items()}
    modes = [(module.training, vars(module).get("momentum")) for module in model.modules()]
    gradients = [p.grad for p in model.parameters()]
    return [
        values,
        modes,
        gradients,
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    ]


@pytest.mark.parametrize("raises", [False, True])
def test_everything_that_a_run_changes_is_restored(raises: bool):
    model = Pair()
    model.norm.eval()
    before = state(model)
    with pytest.raises(ZeroDivisionError) if raises else nullcontext(), preserving(model):
        with torch.no_grad():
            model.train()(torch.randn(3, 4))
        model.norm.momentum = 0.5
        model(torch.randn(3, 4)).sum().backward()
        if raises:
            raise ZeroDivisionError
    assert state(model) == before


def test_modes_are_restored_and_may_be_added():
    model, added = Pair(), nn.Dropout()
    model.norm.eval()
    with evaluating(model):
        assert not model.training
        assert not torch.is_grad_enabled()
    with keeping_modes(model) as modes:
        model.eval()
        modes[added] = False
    assert (model.training, model.norm.training, added.training) == (True, False, False)


def test_batches_are_separate_arguments_a_single_one_or_keywords():
    model, x = Pair().eval(), torch.randn(3, 4)
    torch.testing.assert_close(call(model, (x, x)), call(model, {"x": x, "other": x}))
    torch.testing.assert_close(call(model, [x]), call(model, x))
    with pytest.raises(TypeError):
        call(model, [x], separate=(tuple,))


def test_merged_moments_are_those_of_all_values():
    x = torch.randn(10, dtype=torch.float64) + 1e6
    one, other = x[:3], x[3:]
    share, factor = merging_weights(len(one), len(other))
    step = other.mean() - one.mean()
    variances = [part.var(correction=0) for part in (one, other)]
    sums = [len(part) * variance for part, variance in zip((one, other), variances, strict=True)]
    expected = x.var(correction=0)
    # Means near 1e6 have a resolution of 1e-10, and so have their differences.
    torch.testing.assert_close(one.mean() + step * share, x.mean(), rtol=1e-15, atol=0)
    torch.testing.assert_close((sum(sums) + step.square() * factor) / len(x), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(merged_variance(*variances, step, share), expected, rtol=1e-9, atol=0)
