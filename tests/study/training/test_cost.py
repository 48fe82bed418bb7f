"""The memory of a training step."""

from __future__ import annotations

from dataclasses import replace

import made_up
import pytest
import torch
from torch import nn

from normkit.study.comparison import Comparison
from normkit.study.training import design
from normkit.study.training.cost import saved_bytes, step_memory


def test_memory_counts_each_storage_once() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(5, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = (x @ self.weight).exp()
            return y * y.view(-1, 5)

    x = torch.ones(8, 5)
    # x for the weight's gradient, y for exp and for both factors; the weight is a parameter. Four bytes a number.
    assert saved_bytes(Net(), lambda out, _: out.sum(), x, None) == 4 * (8 * 5 + 8 * 5)


def test_memory_of_a_comparison(found: Comparison) -> None:
    small, large = found.cell("none", 2), found.cell("none", 32)
    assert small.saved_bytes
    assert large.saved_bytes
    # Activations grow with the batch; other saved tensors of the convolution are small.
    assert large.saved_bytes / small.saved_bytes == pytest.approx(16, rel=0.1)
    assert found.cell("batch_norm", 32).saved_bytes > 1.5 * large.saved_bytes  # type: ignore[operator]


def test_memory_of_a_model_that_fails_is_none() -> None:
    x, y = torch.randn(10, 3), torch.randint(0, 2, (10,))
    task = made_up.Task(lambda: nn.Linear(4, 2), (x, y), (x, y))
    assert step_memory(task, design.design(("BN",), (4,), 2, 3, 40, 0), "none", 4) is None


def test_memory_follows_the_precision() -> None:
    x, y = torch.randn(10, 3), torch.randint(0, 2, (10,))
    task = made_up.Task(lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), (x, y), (x, y))
    plan = design.design(("BN",), (4,), 2, 3, 40, 0)
    single, double = (step_memory(task, replace(plan, dtype=dtype), "none", 4) for dtype in ("float32", "float64"))
    # Only the targets, eight bytes each, and the sum of weights of the loss are no larger.
    assert single is not None
    assert double is not None
    assert 1.6 * single < double < 2 * single


# Other forms
