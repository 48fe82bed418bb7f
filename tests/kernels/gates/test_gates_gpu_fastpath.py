"""Gates, skips and modulated weights on a GPU: C++ launches what Python has launched, by a stub of the driver."""

from __future__ import annotations

import itertools
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreted import draw, marks
from stub.calls import built, gpu, learnt, shut
from torch import Tensor

from normkit.functional import group_norm, layer_norm, rms_norm
from normkit.kernels.triton import recipes

FIXTURES = (built, gpu, learnt)
HEADERS = Path(sysconfig.get_path("include"), "Python.h")
pytestmark = [
    *marks,
    pytest.mark.skipif(not HEADERS.exists(), reason=f"the fast path is not built without {HEADERS}"),
]

CALLS: dict[str, Callable[..., Any]] = {
    "gate": lambda x, g, w, **_: rms_norm(x, (48,), w, gate=g, gate_activation="silu"),
    "gate first": lambda x, g, w, **_: rms_norm(x, (48,), w, gate=g, gate_activation="sigmoid", gate_first=True),
    "gate and activation": lambda x, g, w, **_: layer_norm(x, (48,), w, gate=g, activation="relu"),
    "skip": lambda x, g, w, **_: layer_norm(x, (48,), w, skip=g),
    "gate and skip": lambda x, g, w, s, **_: layer_norm(x, (48,), w, gate=g, skip=s, activation="gelu"),
    "modulation": lambda x, m, **_: layer_norm(x, (48,), m, m.detach(), zero_centered=True),
    "modulation and gate": lambda x, m, g, **_: layer_norm(x, (48,), m, m.detach(), gate=g),
    "modulation of each element": lambda x, g, **_: layer_norm(x, (48,), g, g.detach().clone()),
}


def outputs(call: Callable[..., Any], tensors: dict[str, Tensor]) -> list[Tensor]:
    own = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    y = call(**own)
    grads = torch.autograd.grad(
        y, list(own.values()), torch.linspace(-1, 1, y.numel()).view(y.shape), allow_unused=True
    )
    return [y, *[t for t in grads if t is not None]]


@pytest.mark.parametrize("name", CALLS)
def test_it_launches_what_python_launches(name, gpu, learnt, monkeypatch):
    tensors = {"x": draw(3, 2, 48), "g": draw(3, 2, 48), "s": draw(3, 2, 48), "w": draw(48), "m": draw(3, 1, 48)}
    for _ in range(3):
        got = outputs(CALLS[name], tensors)
    assert learnt == ["norm", "norm_backward"]
    assert not recipes.refused
    gpu.launches.clear()
    outputs(CALLS[name], tensors)
    launched = len(gpu.launches)
    shut(monkeypatch)
    gpu.launches.clear()
    want = outputs(CALLS[name], tensors)
    assert launched == len(gpu.launches)
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


def test_their_recipes_are_not_confused(gpu, learnt, monkeypatch):
    """Calls that differ in which tensors they have, in the function of the gate, and in its place."""
    x, g, s = (draw(3, 2, 48) for _ in range(3))
    kinds = [
        {"gate": gate, "skip": skip, "gate_activation": function, "gate_first": first, "activation": last}
        for gate, skip, function, first, last in itertools.product(
            (None, g), (None, s), (None, "silu"), (False, True), (None, "relu")
        )
        if gate is not None or not (function or first)
    ]

    def all_of_them() -> list[list[Tensor]]:
        return [outputs(lambda x, kind=kind: layer_norm(x, (48,), **kind), {"x": x}) for kind in kinds]

    for _ in range(2):
        all_of_them()
    known, got = len(learnt), all_of_them()
    # A skip that is only added has the backward pass of the call without it.
    alike = sum(kind["skip"] is not None and kind["activation"] is None for kind in kinds)
    assert len(learnt) == known == 2 * len(kinds) - alike
    shut(monkeypatch)
    for one, other in zip(itertools.chain(*got), itertools.chain(*all_of_them()), strict=True):
        assert torch.equal(one, other)


def test_weights_of_groups_and_samples(gpu, learnt, monkeypatch):
    tensors = {"x": draw(3, 4, 5, 3), "w": draw(3, 4, 1, 1), "b": draw(3, 4, 1, 1)}

    def call(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return group_norm(x, 2, w, b)

    for _ in range(3):
        got = outputs(call, tensors)
    assert learnt == ["norm", "norm_backward"]
    shut(monkeypatch)
    for one, other in zip(got, outputs(call, tensors), strict=True):
        assert torch.equal(one, other)
