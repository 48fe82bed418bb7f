"""Where the channels of a tensor are, and the mean over them that centring takes out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Channels:
    """The place of the channels of a stream in one of its tensors.

    Centring is ``x - r mean(x / r)``. The vector r is 1, or, before a multiplication by the scales g of a LayerScale,
    1 / g, so that the product is centred.

    Attributes:
        count: number of channels.
        dim: the dimension that they are in.
        blocks: how often they are repeated in it, as where it holds several heads.
        ones: r, in float64; None for 1.
    """

    count: int
    dim: int
    blocks: int = 1
    ones: Tensor | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Channels):
            return NotImplemented
        if (self.count, self.dim, self.blocks) != (other.count, other.dim, other.blocks):
            return False
        if self.ones is None or other.ones is None:
            return self.ones is other.ones
        return bool(torch.allclose(self.ones, other.ones, rtol=1e-9, atol=0))

    def centred(self, x: Tensor) -> Tensor:
        """The tensor without the mean of its channels.

        >>> Channels(2, 0, 2).centred(torch.tensor([1.0, 3.0, 5.0, 5.0]))
        tensor([-1.,  1.,  0.,  0.])
        """
        y, ones = self._split(x)
        return (y - ones * (y / ones).mean(self.dim + 1, keepdim=True)).flatten(self.dim, self.dim + 1)

    def drawn(self, x: Tensor, scale: float) -> Tensor:
        """Random numbers of the shape of a tensor, each the same in all channels, or in the ratio r."""
        y, ones = self._split(x)
        shape = [*y.shape]
        shape[self.dim + 1] = 1
        numbers = torch.randn(shape, device=x.device, dtype=torch.float64) * scale
        return (numbers * ones.expand(y.shape)).flatten(self.dim, self.dim + 1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.unflatten(self.dim, (self.blocks, self.count))
        ones = y.new_ones(1) if self.ones is None else self.ones.to(y)
        return y, ones.reshape(-1, *[1] * (y.dim() - self.dim - 2))

    def scaled(self, scale: Tensor) -> Channels | None:
        """The channels of the factor, where these are of the product with the scales; None where a scale is 0."""
        ones = (1 if self.ones is None else self.ones) / scale.flatten()
        if not bool(ones.isfinite().all()) or not bool(ones.all()):
            return None
        ones = ones / ones[ones.abs().argmax()]
        same = bool(torch.allclose(ones, torch.ones_like(ones), rtol=1e-9, atol=0))
        return Channels(self.count, self.dim, self.blocks, None if same else ones)


def places(shape: tuple[int, ...], like: Channels) -> Iterator[Channels]:
    """Every place where a tensor of this shape may have the channels, the last dimension first."""
    for dim in reversed(range(len(shape))):
        if shape[dim] and shape[dim] % like.count == 0:
            yield Channels(like.count, dim, shape[dim] // like.count, like.ones)
