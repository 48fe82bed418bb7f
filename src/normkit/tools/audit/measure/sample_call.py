"""A call of a norm with one sample, which can be made part of a batch, cut along its positions, and padded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from normkit.tools.model.valid import is_unbatched, takes_extras


@dataclass(frozen=True)
class SampleCall:
    """The arguments of a call with a batch of one sample.

    Attributes:
        leaves, spec: the arguments, flattened.
        at: which leaf is the norm's input.
        batched: which leaves have one entry for each sample.
    """

    leaves: tuple[Any, ...]
    spec: TreeSpec
    at: int
    batched: tuple[bool, ...]

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Self | None:
        """The first sample of a call; None if the call has no input in floating point.

        Tensors with the input's first size count as batched, but for vectors, which may be weights.
        """
        kwargs = dict(kwargs)
        if takes_extras(module) and kwargs.get("lengths") is not None:
            kwargs["lengths"] = torch.as_tensor(kwargs["lengths"])
        leaves, spec = tree_flatten((args, kwargs))
        at = next((i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()), None)
        if at is None or not leaves[at].dim() or not leaves[at].numel():
            return None
        x = leaves[at]
        if x.dim() == 1 or is_unbatched(module, x.dim()):
            leaves = [leaf[None] if isinstance(leaf, Tensor) and leaf.shape == x.shape else leaf for leaf in leaves]
        samples = len(leaves[at])
        batched = [
            isinstance(leaf, Tensor)
            and leaf.dim() > 0
            and len(leaf) == samples
            and (leaf.dim() > 1 or not leaf.is_floating_point())
            for leaf in leaves
        ]
        own = [leaf.detach()[:1].clone() if one else leaf for leaf, one in zip(leaves, batched, strict=True)]
        return cls(tuple(own), spec, at, tuple(batched))

    @property
    def input(self) -> Tensor:
        """What the norm normalizes."""
        x: Tensor = self.leaves[self.at]
        return x

    def run(self, module: Callable[..., Any], more: Mapping[str, Any] | None = None) -> list[Tensor]:
        """All tensors that the module returns; `more` are further keyword arguments."""
        args, kwargs = tree_unflatten(self.leaves, self.spec)
        with torch.no_grad():
            return [leaf for leaf in tree_leaves(module(*args, **kwargs, **(more or {}))) if isinstance(leaf, Tensor)]

    def has(self, *names: str) -> bool:
        """Whether the call gives one of these keyword arguments."""
        kwargs = tree_unflatten(self.leaves, self.spec)[1]
        return any(kwargs.get(name) is not None for name in names)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        pairs = zip(self.leaves, self.batched, strict=True)
        return replace(self, leaves=tuple([change(leaf) if batched else leaf for leaf, batched in pairs]))

    def in_batch(self, size: int, places: Sequence[int]) -> Self:
        """A batch with the sample at these places, and multiples of it elsewhere, in the sample's order of memory."""
        factors = torch.linspace(0.5, 1.75, size)
        factors[list(places)] = 1

        def spread(leaf: Tensor) -> Tensor:
            inner = sorted(range(1, leaf.dim()), key=lambda dim: -leaf.stride()[dim])
            order = [0, *inner]
            empty = leaf.new_empty([size, *(leaf.shape[dim] for dim in inner)])
            out = empty.permute([order.index(dim) for dim in range(leaf.dim())])
            if not leaf.is_floating_point():
                return out.copy_(leaf.expand(out.shape))
            scale = factors.to(leaf.device, leaf.dtype).view(-1, *[1] * (leaf.dim() - 1))
            return torch.mul(leaf, scale, out=out)

        return self._each(spread)

    def part(self, dim: int, start: int, length: int) -> Self:
        """Some of the positions along a dimension."""
        size = self.input.shape[dim]
        return self._each(lambda leaf: leaf.narrow(dim, start, length) if _has(leaf, dim, size) else leaf)

    def padded(self, dim: int, count: int, value: float) -> Self:
        """More positions at the end of a dimension."""
        size = self.input.shape[dim]

        def longer(leaf: Tensor) -> Tensor:
            if not _has(leaf, dim, size):
                return leaf
            shape = [count if d == dim else own for d, own in enumerate(leaf.shape)]
            return torch.cat([leaf, leaf.new_full(shape, value)], dim)

        return self._each(longer)


def _has(leaf: Tensor, dim: int, size: int) -> bool:
    return leaf.dim() > dim and leaf.shape[dim] == size
