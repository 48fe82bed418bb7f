"""Regions, shapes and strides that nobody thought of, drawn by hypothesis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from normkit import functional

SETTINGS = settings(max_examples=400, deadline=None, derandomize=True, database=None)


@dataclass(frozen=True)
class Part:
    """One axis: its name, its size, whether it is reduced."""

    name: str
    size: int
    reduced: bool


@dataclass(frozen=True)
class Drawn:
    """A region as data; its text is for normkit, its data for the oracle."""

    dims: tuple[tuple[Part, ...], ...]

    @property
    def text(self) -> str:
        words = []
        for dim in self.dims:
            # Sizes are written where a dimension is split, all but the last.
            names = [
                f"{part.name}={part.size}" if part is not dim[-1] else part.name for part in dim
            ]  # fmt: skip
            inside = [f"[{name}]" if part.reduced else name for name, part in zip(names, dim, strict=True)]
            words.append(inside[0] if len(dim) == 1 else f"({' '.join(inside)})")
        return " ".join(words)

    @property
    def parts(self) -> list[Part]:
        return [part for dim in self.dims for part in dim]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(torch.Size([part.size for part in dim]).numel() for dim in self.dims)

    @property
    def features(self) -> list[int]:
        """The dimensions that weight and bias vary over."""
        return [i for i, dim in enumerate(self.dims) if any(part.name.startswith("c") for part in dim)]

    def __call__(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, center: bool) -> Tensor:
        """The definition."""
        split = x.double().reshape([part.size for part in self.parts])
        reduced = [i for i, part in enumerate(self.parts) if part.reduced]
        mean = split.mean(reduced, keepdim=True) if center else torch.zeros((), dtype=torch.float64)
        var = (split - mean).square().mean(reduced, keepdim=True)
        y = ((split - mean) / (var + eps).sqrt()).reshape(x.shape)
        shape = [size if i in self.features else 1 for i, size in enumerate(x.shape)]
        y = y if weight is None else y * weight.double().reshape(shape)
        return y if bias is None else y + bias.double().reshape(shape)


@st.composite
def regions(draw: st.DrawFn) -> Drawn:
    dims, count = [], 0
    long = draw(st.integers(0, 6))  # the axis, if there are so many, that fills more than one vector register
    for _ in range(draw(st.integers(1, 4))):
        parts = []
        for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
            kind = draw(st.sampled_from("abc"))
            size = draw(st.integers(1, 6)) if count != long else draw(st.sampled_from([17, 33, 70, 130]))
            parts.append(Part(f"{kind}{count}", size, draw(st.booleans())))
            count += 1
        dims.append(tuple(parts))
    if not any(part.reduced for dim in dims for part in dim):
        first = dims[0][0]
        dims[0] = (Part(first.name, first.size, True), *dims[0][1:])
    return Drawn(tuple(dims))


@st.composite
def laid_out(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    """Values of about 1 +- 1 with drawn order, gaps, offset, and perhaps a repeated dimension."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in shape]
    offset = draw(st.integers(0, 3))
    strides, stride = [0] * len(shape), 1
    for dim in order:
        strides[dim] = stride * steps[dim]
        stride *= shape[dim] * steps[dim]
    if draw(st.sampled_from([False, False, False, True])):
        strides[draw(st.integers(0, len(shape) - 1))] = 0
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    memory = torch.randn(stride + offset, generator=generator) + 1
    return memory.as_strided(shape, strides, offset)


@st.composite
def calls(draw: st.DrawFn) -> tuple[Drawn, Tensor, Tensor, Tensor | None, Tensor | None, bool]:
    region = draw(regions())
    x, dy = draw(laid_out(region.shape)), draw(laid_out(region.shape))
    shape = [region.shape[i] for i in region.features]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator) + 2 if shape and draw(st.booleans()) else None
    bias = torch.randn(shape, generator=generator) if shape and draw(st.booleans()) else None
    return region, x, dy, weight, bias, draw(st.booleans())


@SETTINGS
@given(calls())
def test_values_and_gradients_of_any_region_on_any_strides(call):
    region, x, dy, weight, bias, center = call
    eps = 0.1  # regions of one value are drawn too, whose variance is 0
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias) if t is not None]
    wide = [t.detach().double().requires_grad_() for t in leaves]

    def place(tensors: list[Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        rest = iter(tensors)
        return next(rest), next(rest) if weight is not None else None, next(rest) if bias is not None else None

    y = functional.normalize(place(leaves)[0], region.text, *place(leaves)[1:], eps=eps, center=center)
    expected = region(*place(wide), eps=eps, center=center)
    assert y.stride() == torch.empty_like(x).stride()
    # |mean| / std is at most about 4 / sqrt(0.1) here and weights at most about 5: 4 units of eps times that.
    bound = 4 * torch.finfo().eps * 13 * 5
    assert (y.double() - expected).abs().max() <= bound * expected.abs().max().clamp(min=1)
    ours = torch.autograd.grad(y, leaves, dy)
    theirs = torch.autograd.grad(expected, wide, dy.double())
    for mine, exact in zip(ours, theirs, strict=True):
        # The products that a gradient subtracts are up to x_hat = 4 times larger: 4 times the bound.
        assert (mine.double() - exact).abs().max() <= 4 * bound * exact.abs().max().clamp(min=1)
