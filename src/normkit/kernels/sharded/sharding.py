"""How the tensors of one call lie on the processes of a mesh, and which part of the call each process computes.

Each process normalizes its own part of x. Where a mesh divides a reduced dimension, the processes merge the moments of
their parts. A dimension of several axes, such as ``(g [c])``, is divided along its outermost axis; if the parts would
cut through the axes inside, x is gathered first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from normkit.errors import ArgumentError
from normkit.pattern import Level, parse


@dataclass(frozen=True)
class Sharding:
    """The placement of one call.

    Attributes:
        mesh: the processes.
        placements: of x and of all tensors of its shape, one for each dimension of the mesh.
        pattern: the region.
        shape: of the whole x.
        levels: the axes of the whole x.
        divided: for each divided dimension of x, the position in `levels` of the axis that is divided.
        pooled: the dimensions of the mesh that divide a reduced axis.
    """

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    pattern: str
    shape: tuple[int, ...]
    levels: tuple[Level, ...]
    divided: dict[int, int]
    pooled: tuple[int, ...]

    @property
    def features(self) -> list[int]:
        """The dimensions of x that weight and bias have."""
        return sorted({level.dim for level in self.levels if level.feature})

    @property
    def kept(self) -> list[int]:
        """The dimensions of x that statistics have."""
        return sorted({level.dim for level in self.levels if not level.reduced})

    def statistics(self) -> list[int]:
        """The sizes of statistics of the whole x, of which the distributed ones keep the dimensions."""
        return [self._kept_in(dim, self.levels) for dim in self.kept]

    def part(self, shape: Sequence[int]) -> tuple[Level, ...]:
        """The axes of this process's part of x, which has this shape and may be empty."""
        own = list(self.levels)
        for dim, position in self.divided.items():
            level = own[position]
            inside = math.prod(other.size for other in own if other.dim == dim and other is not level)
            own[position] = replace(level, size=shape[dim] // inside)
        return tuple(own)

    def part_pattern(self, own: Sequence[Level]) -> str:
        """The region of a part: as that of the whole, but for the sizes of divided axes."""
        region = parse(self.pattern)
        fixed = {axis.name for group in region.dims for axis in group if len(group) > 1 or axis.size is not None}
        divided = [own[position] for position in self.divided.values()]
        sizes = {level.name: level.size for level in divided if level.name in fixed}
        return region.bind(**sizes).text if sizes else self.pattern

    def _kept_in(self, dim: int, levels: Sequence[Level]) -> int:
        return math.prod(level.size for level in levels if level.dim == dim and not level.reduced)

    def along(self, dims: Sequence[int], otherwise: type[Placement] = Replicate) -> list[Placement]:
        """The placements of a tensor that has these dimensions of x.

        Args:
            dims: for each dimension of the tensor, that of x.
            otherwise: where a mesh divides another dimension of x: the tensor is the same everywhere, or a sum.
        """
        places: list[Placement] = []
        for place in self.placements:
            if not isinstance(place, Shard):
                places.append(Replicate())
            elif place.dim in dims:
                places.append(Shard(dims.index(place.dim)))
            else:
                places.append(otherwise())
        return places

    def of_statistics(self) -> list[Placement]:
        """The placements of statistics: divided with the kept axes, and the same wherever a reduced one is divided."""
        places = self.along(self.kept)
        return [Replicate() if i in self.pooled else place for i, place in enumerate(places)]

    def without_pooled(self) -> Sharding:
        """The same, with what the reduced axes divide gathered on every process."""
        places = [Replicate() if i in self.pooled else place for i, place in enumerate(self.placements)]
        divided = {dim: position for dim, position in self.divided.items() if Shard(dim) in places}
        return replace(self, placements=tuple(places), divided=divided, pooled=())

    # Tensors on their way to a process's part, and back -------------------------------------------------------

    def own(self, what: str, t: Tensor | None, dims: Sequence[int] | None = None) -> Tensor | None:
        """This process's part of a tensor that has these dimensions of x; all of them by default."""
        if t is None:
            return None
        dims = range(len(self.shape)) if dims is None else dims
        # A dimension of size 1 is broadcast to that of x.
        spread = [dim if size > 1 or self.shape[dim] == 1 else -1 for dim, size in zip(dims, t.shape, strict=True)]
        return self.placed(what, t, self.along(spread))

    def placed(self, what: str, t: Tensor, placements: Sequence[Placement]) -> Tensor:
        """This process's part of a tensor with these placements; a tensor that is not distributed is whole.

        Raises:
            ArgumentError: a parameter that is not distributed, or one on another mesh.
        """
        if not isinstance(t, DTensor):
            if t.requires_grad:
                raise ArgumentError(
                    f"{what} must be a distributed tensor as the input is, because it needs a gradient; got a "
                    "torch.Tensor: distribute the layer, as by torch.distributed.tensor.distribute_module(layer, mesh)"
                )
            t = DTensor.from_local(t, self.mesh, [Replicate()] * self.mesh.ndim, run_check=False)
        elif t.device_mesh != self.mesh:
            raise ArgumentError(
                f"{what} must be on the input's mesh {self.mesh}, got one on {t.device_mesh}: distribute both alike"
            )
        return t.redistribute(self.mesh, placements).to_local()

    def statistic(self, what: str, t: Tensor) -> Tensor:
        """This process's part of statistics, flat."""
        return self.placed(what, t.reshape(self.statistics()), self.of_statistics()).reshape(-1)

    def whole(
        self, t: Tensor, placements: Sequence[Placement], shape: Sequence[int], order: Sequence[int] | None = None
    ) -> DTensor:
        """The distributed tensor of all processes' parts, dense, with its dimensions in memory in this order."""
        stride, step = [0] * len(shape), 1
        for dim in reversed(range(len(shape)) if order is None else order):
            stride[dim], step = step, step * max(shape[dim], 1)
        size = torch.Size(shape)
        return DTensor.from_local(t, self.mesh, placements, run_check=False, shape=size, stride=tuple(stride))

    def whole_like(self, x: Tensor, t: Tensor) -> DTensor:
        """The distributed tensor of x's shape and memory layout."""
        strides = x.stride()
        return self.whole(t, self.placements, x.shape, sorted(range(x.dim()), key=lambda dim: -strides[dim]))

    def whole_statistic(self, t: Tensor, own: Sequence[Level]) -> DTensor:
        """Statistics of all processes, from the flat ones of a part."""
        part = t.reshape([self._kept_in(dim, own) for dim in self.kept])
        return self.whole(part, self.of_statistics(), self.statistics())

    def gathered(self, t: Tensor, mesh_dim: int) -> Tensor:
        """The values of all processes along a dimension of the mesh, stacked."""
        return self._along_mesh(t.unsqueeze(0), mesh_dim, Shard(0))

    def summed(self, t: Tensor) -> Tensor:
        """The sum over all processes that share a cell."""
        for mesh_dim in self.pooled:
            t = self._along_mesh(t, mesh_dim, Partial())
        return t

    def _along_mesh(self, t: Tensor, mesh_dim: int, place: Placement) -> Tensor:
        # Along the other dimensions of the mesh nothing is exchanged, so that what they hold need not be the same.
        replicated: list[Placement] = [Replicate()] * self.mesh.ndim
        places = [*replicated[:mesh_dim], place, *replicated[mesh_dim + 1 :]]
        return DTensor.from_local(t, self.mesh, places, run_check=False).redistribute(self.mesh, replicated).to_local()


def sharding_of(pattern: str, x: Any, *others: Tensor | None) -> Sharding:
    """The placement of a call: along each dimension of the mesh as x, or as the first of `others` that is divided.

    Raises:
        ArgumentError: x is not distributed.
    """
    if not isinstance(x, DTensor):
        raise ArgumentError(
            "the input must be a distributed tensor if weight, bias or residual are, got a torch.Tensor: distribute "
            "it, as torch's PrepareModuleInput and SequenceParallel do, or normalize the parts with to_local()"
        )
    mesh = x.device_mesh
    distributed = [t for t in (x, *others) if isinstance(t, DTensor) and t.device_mesh == mesh]
    wanted: list[Placement] = []
    for mesh_dim in range(mesh.ndim):
        places = (t.placements[mesh_dim] for t in distributed)
        wanted.append(next((place for place in places if type(place) is Shard), Replicate()))
    levels = parse(pattern).levels(x.shape)
    divided: dict[int, int] = {}
    for dim in {place.dim for place in wanted if isinstance(place, Shard)}:
        parts = [mesh.size(i) for i, place in enumerate(wanted) if place == Shard(dim)]
        position = _divided_axis(levels, dim, x.shape[dim], parts)
        if position is None:
            wanted = [Replicate() if place == Shard(dim) else place for place in wanted]
        else:
            divided[dim] = position
    pooled = [i for i, place in enumerate(wanted) if isinstance(place, Shard) and levels[divided[place.dim]].reduced]
    return Sharding(mesh, tuple(wanted), pattern, tuple(x.shape), levels, divided, tuple(pooled))


def _divided_axis(levels: Sequence[Level], dim: int, size: int, parts: Sequence[int]) -> int | None:
    """The axis that is divided with a dimension; None if the parts cut through an axis inside of it."""
    inside = [i for i, level in enumerate(levels) if level.dim == dim]
    outer = next((i for i in inside if levels[i].size != 1), inside[0])
    step = math.prod(levels[i].size for i in inside if i != outer)
    if len(parts) == 1:
        whole = step == 1 or -(-size // parts[0]) % step == 0
    else:  # a process's share of a share depends on the process, unless all are the same
        whole = step == 1 or size % (math.prod(parts) * step) == 0
    return outer if whole else None
