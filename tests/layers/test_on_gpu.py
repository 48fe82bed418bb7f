"""Layers on a GPU, as users call them: the contract again, and calls that the fast path has learnt.

``pytest -m gpu tests/layers``; the kernels alone, by the operators, are tested in tests/kernels/test_triton.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import contract
from cases import CASES, Case, make_input, make_layer
from normkit.kernels import fastpath

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
every = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(autouse=True)
def on_gpu() -> Iterator[None]:
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(None)


def both_passes(layer: nn.Module, x: Tensor) -> list[Tensor]:
    y = layer(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]


@every
def test_the_contract(case: Case):
    """Without what promises equal bits however a call is divided: on a GPU, sums for weights take another walk."""
    for dtypes in ("float32", "bfloat16 beside float32" if case.elementwise else "bfloat16"):
        contract.values(case, dtypes, "contiguous")
    contract.values(case, "float32", "channels_last" if len(case.shape) == 4 else "inside")
    contract.gradients(case, "float32", "contiguous")
    contract.copies(case)
    contract.empty(case)
    contract.refusals(case)
    if case.torch:
        contract.running_statistics(case)


@every
def test_calls_give_the_same_bits_again(case: Case, monkeypatch: pytest.MonkeyPatch):
    """The first is Python's, later ones may be the fast path's; then on another stream, and without the fast path."""
    for layer in contract.modes(make_layer(case)):
        x = make_input(case).requires_grad_()
        first, *others = (both_passes(layer, x) for _ in range(4))
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            others.append(both_passes(layer, x))
        torch.cuda.synchronize()
        with monkeypatch.context() as patched:
            for name in ("norm", "weight_norm"):
                patched.setattr(fastpath, name, lambda *_: None)
            others.append(both_passes(layer, x))
        for again in others:
            for one, other in zip(again, first, strict=True):
                assert torch.equal(one, other)


@every
def test_calls_without_gradients_give_the_same_bits(case: Case):
    layer = make_layer(case).eval()
    x = make_input(case)
    with_gradients = [layer(x) for _ in range(3)]
    with torch.no_grad():
        without = [layer(x) for _ in range(3)]
    with torch.inference_mode():
        without.append(layer(x))
    for y in (*with_gradients[1:], *without):
        assert torch.equal(y, with_gradients[0])
