"""Bounded functions of large tensors, block by block: values, gradients and second derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import normkit
from normkit import functional
from normkit.functional.pointwise import blocks

SHAPE = (7, 4, 2, 4)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Forward takes a row of the first dimension at a time with two threads, backward two; its last block has one.
    monkeypatch.setattr(blocks, "PART", 9)


def tensors(erf: bool, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [SHAPE, (1,), *[(1,)] * erf, (4,), (4,)]
    return [(torch.randn(shape) * 1.5).to(dtype).requires_grad_() for shape in shapes]


def formula(x: Tensor, alpha: Tensor, *rest: Tensor, channels_last: bool) -> Tensor:
    *shift, weight, bias = rest
    shape = (4,) if channels_last else (4, 1, 1)
    value = torch.erf(alpha * x + shift[0]) if shift else torch.tanh(alpha * x)
    return value * weight.view(shape) + bias.view(shape)


def made(leaves: list[Tensor], channels_last: bool) -> Tensor:
    call = functional.dynamic_erf if len(leaves) == 5 else functional.dynamic_tanh
    y = call(*leaves, channels_last)
    assert "Blocks" in type(y.grad_fn).__name__
    return y


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("erf", [True, False])
def test_values_and_gradients_of_the_formula(erf: bool, channels_last: bool, layout: torch.memory_format):
    leaves = tensors(erf)
    leaves[0] = leaves[0].detach().contiguous(memory_format=layout).requires_grad_()
    y, expected = made(leaves, channels_last), formula(*leaves, channels_last=channels_last)
    torch.testing.assert_close(y, expected)
    assert y.stride() == leaves[0].stride()
    for upstream in (torch.randn_like(y), torch.ones(()).double().expand(SHAPE)):
        pairs = (torch.autograd.grad(out, leaves, upstream, retain_graph=True) for out in (y, expected))
        for mine, theirs in zip(*pairs, strict=True):
            torch.testing.assert_close(mine, theirs)
    assert gradcheck(lambda *leaves: made([*leaves], channels_last), leaves)


@pytest.mark.parametrize("erf", [True, False])
def test_second_derivatives(erf: bool):
    leaves = tensors(erf)
    leaves[0] = leaves[0].detach()[:3].requires_grad_()
    assert gradgradcheck(lambda *leaves: made([*leaves], True), leaves)


@pytest.mark.parametrize("erf", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_half_precision_result_is_rounded_once(erf: bool, dtype: torch.dtype):
    leaves = tensors(erf, dtype)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    y, exact = made(leaves, True), formula(*wide, channels_last=True)
    # Half a unit of its dtype, and a few of float32 at the size of the terms that are added, which is near 1.
    unit, single = torch.finfo(dtype).eps, torch.finfo(torch.float32).eps
    torch.testing.assert_close(y.double(), exact, rtol=0.51 * unit, atol=4 * single)
    grads = (torch.autograd.grad(out.sum(), all_) for out, all_ in ((y, leaves), (exact, wide)))
    for mine, theirs in zip(*grads, strict=True):
        # Sums are in float64 between the blocks; within one, in float32 of at most 64 values near 1.
        torch.testing.assert_close(mine.double(), theirs, rtol=2 * unit, atol=4 * unit)


def test_only_the_gradients_that_are_wanted():
    leaves = [t.detach().requires_grad_(i in (1, 3)) for i, t in enumerate(tensors(False))]
    y, expected = made(leaves, True), formula(*leaves, channels_last=True)
    wanted = [leaves[1], leaves[3]]
    pairs = (torch.autograd.grad(out.square().sum(), wanted) for out in (y, expected))
    for mine, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_where_it_is_not_taken_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch):
    """With a mask, in one dimension, in which each element has a weight of its own, and under transforms."""
    layer, x = normkit.DynamicTanh(128), torch.randn(128)
    with torch.no_grad():
        layer.weight.normal_()
    rows = x.expand(5, 128).contiguous()
    torch.testing.assert_close(layer(x), layer(rows)[0])
    torch.testing.assert_close(layer(rows, mask=torch.ones(5, dtype=torch.bool)), layer(rows))
    torch.testing.assert_close(torch.func.vmap(layer)(rows), layer(rows))
    y = layer(rows)
    monkeypatch.setattr(blocks, "PART", 1 << 20)
    torch.testing.assert_close(layer(rows), y)
