"""Layers on a GPU, as users call them: the contract again, and calls that the fast path has learnt.

``pytest -m gpu tests/layers``; the kernels alone, by the operators, are tested in tests/kernels/test_triton.py.

The GPU is the default device while tensors are made, and not while layers are called: a default device is a mode of
torch's, and C++ takes no call in which a mode is in force.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import contract
import normkit
from cases import CASES, Case, make_input, make_layer
from normkit.kernels import fastpath

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
every = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture
def default_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The contract makes tensors on the GPU, and calls layers without torch's modes."""
    call = nn.Module.__call__

    def without_modes(layer: nn.Module, *inputs: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return call(layer, *inputs)

    monkeypatch.setattr(nn.Module, "__call__", without_modes)
    with torch.device("cuda"):
        yield


def made(case: Case) -> tuple[nn.Module, Tensor]:
    """The layer of a case and its input."""
    with torch.device("cuda"):
        return make_layer(case), make_input(case)


def both_passes(layer: nn.Module, x: Tensor) -> list[Tensor]:
    y = layer(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]


@pytest.mark.usefixtures("default_device")
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
    made_layer, x = made(case)
    x.requires_grad_()
    for layer in contract.modes(made_layer):
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
    layer, x = made(case)
    layer.eval()
    with_gradients = [layer(x) for _ in range(3)]
    with torch.no_grad():
        without = [layer(x) for _ in range(3)]
    with torch.inference_mode():
        without.append(layer(x))
    for y in (*with_gradients[1:], *without):
        assert torch.equal(y, with_gradients[0])


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: normkit.LayerNorm(768), (64, 768)),
        (lambda: normkit.RMSNorm(768), (64, 768)),
        (lambda: normkit.BatchNorm2d(64), (8, 64, 8, 8)),
        (lambda: normkit.GroupNorm(8, 64), (8, 64, 8, 8)),
        (lambda: normkit.InstanceNorm2d(64, affine=True), (8, 64, 8, 8)),
    ],
    ids=["layer", "rms", "batch", "group", "instance"],
)
def test_cpp_takes_plain_calls(make: Callable[[], nn.Module], shape: tuple[int, ...], backward: bool):
    """Otherwise the tests above, and the times of calls, are those of Python's way alone."""
    recipes = pytest.importorskip("normkit.kernels.triton.recipes")
    with torch.device("cuda"):
        layer, x = make(), torch.randn(shape)
    x.requires_grad_(backward)
    layer.requires_grad_(backward)
    possible, why = recipes.state()
    if not possible:
        pytest.skip(why)
    recipes.refused.clear()
    for _ in range(3):
        y = layer(x)
        if backward:
            y.sum().backward()
    assert not recipes.refused
    if backward:
        assert y.grad_fn.name().startswith("Normkit")
    assert fastpath.known_recipes() > 0
