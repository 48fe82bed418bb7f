"""What the tests of `to_rms_norm` share: networks put together by a function, and what must hold of a result."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import normkit
from normkit.tools.fold.check import compared
from normkit.tools.model.tree import norms
from normkit.tools.to_rms_norm import RMSNormReport

WIDTH = 8

# In float64: a few hundred roundings of 1e-16, divided by standard deviations that are not small.
DOUBLE = {"rtol": 1e-11, "atol": 1e-11}


class Net(nn.Module):
    """Layers and parameters put together by a function."""

    def __init__(self, way: Callable[..., Any], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.way = way

    def forward(self, x: Tensor) -> Any:
        return self.way(self, x)


def linear(inside: int = WIDTH, outside: int = WIDTH, **more: Any) -> nn.Linear:
    return nn.Linear(inside, outside, **more)


def norm(width: int = WIDTH) -> nn.LayerNorm:
    """With random weights: at their initial values, much that is wrong would go unseen."""
    layer = nn.LayerNorm(width)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.bias)
    return layer


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) + 1)


def subject() -> Tensor:
    return torch.randn(2, 5, WIDTH)


def count(model: nn.Module) -> int:
    """How many norms subtract a mean."""
    return sum(info.centers for _, info in norms(model))


@torch.no_grad()
def checked(model: nn.Module, x: Any, **options: Any) -> tuple[nn.Module, RMSNormReport]:
    """The converted model and the report, after what must hold of every result has been checked."""
    model = model.eval()
    state = copy.deepcopy(model.state_dict())
    before = [*model.modules()]
    converted, report = normkit.to_rms_norm(model, x, **options)
    # The model is as it was, and the state dict has the same form.
    assert [*model.modules()] == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [(k, v.shape, v.dtype) for k, v in converted.state_dict().items()] == [
        (k, v.shape, v.dtype) for k, v in state.items()
    ]
    # No other value changed than those that are reported.
    shared = {id(p): name for name, p in converted.named_parameters()}
    listed = {row.name for row in report.centred}
    for key, value in converted.state_dict(keep_vars=True).items():
        assert shared.get(id(value), key) in listed or torch.equal(value, state[key]), key
    # Every layer norm is accounted for.
    assert len(report.changes) + len(report.refusals) + len(report.kept) == len(list(norms(model)))
    assert count(converted) == count(model) - len(report.changes)
    check_means(converted, report, x)
    check_original(model, converted, x, report)
    return converted, report


def call(model: nn.Module, x: Any) -> list[Tensor]:
    y = model(**x) if isinstance(x, dict) else model(x)
    return compared(y)


def check_means(converted: nn.Module, report: Any, x: Any) -> None:
    """By the definition: each converted norm gets numbers with a mean of 0."""
    seen: list[tuple[Tensor, int]] = []
    twin = copy.deepcopy(converted)
    for row in report.changes:
        module = twin.get_submodule(row.name)
        dim = 1 if getattr(module, "pattern", "...").startswith("b") else -1
        module.register_forward_pre_hook(lambda m, args, dim=dim: seen.append((args[0], dim)))
    call(twin, x)
    assert len(seen) >= len(report.changes)
    for tensor, dim in seen:
        # Each term of the mean was rounded once as a weight and a few times on its way; the errors average out.
        assert tensor.mean(dim).abs().max() <= 4 * torch.finfo(tensor.dtype).eps * tensor.abs().max()


def check_original(model: nn.Module, converted: nn.Module, x: Any, report: Any) -> None:
    """A model of the original architecture computes the same with the new state dict."""
    original = copy.deepcopy(model)
    for row in report.untied:
        for name in (row.name, row.other):
            path, _, key = name.rpartition(".")
            setattr(original.get_submodule(path), key, nn.Parameter(torch.empty_like(original.get_parameter(name))))
    original.load_state_dict(converted.state_dict())
    for new, old in zip(call(original, x), call(model, x), strict=True):
        finite = old.isfinite()
        assert (new - old)[finite].abs().max() <= 1e-5 * old[finite].abs().max()
