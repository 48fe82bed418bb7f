"""The description of a norm of any library."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from normkit import catalog
from normkit.pattern import Region, bound


@dataclass(frozen=True)
class Gate:
    """How a norm uses a second input, the gate, of the shape of the first.

    Attributes:
        activation: applied to the gate, by its name.
        first: whether it multiplies the input of the norm, as in Mamba 2, and not its output.
        group_size: the number of features that share a root mean square; None for all.
    """

    activation: str = "silu"
    first: bool = False
    group_size: int | None = None


@dataclass(frozen=True)
class NormInfo:
    """A norm in the words of the catalog.

    Attributes:
        kind: name of the method in the catalog; None if the norm is not understood.
        reason: why it is not understood, or what it does beyond its `base`; empty if it is a method of the catalog.
        base: the method that a norm with a gate, or with a weight for each head, extends; `kind` is None then.
        gate: how it uses a gate; None if it takes one input.
        per_head: whether only the last of the dimensions in `shape` is normalized, and the first has a weight for
            each head, as in Cohere.
        shape: of weight and bias, whether there are any: ``(C,)``, or the sizes of the last dimensions.
        axis: where the features are: ``"first"`` is dimension 1, ``"last"`` the last dimensions.
        rank: number of dimensions after the channels that the layer is made for; None for any.
        groups: number of groups, of group norm.
        eps: added to the variance; None for the machine epsilon.
        weight, bias: whether it has these parameters.
        offset: what is added to the stored weight before use: 1 in Gemma's norm, whose weight starts at 0.
        rounds_twice: in half precision, the normalized value is rounded before it is multiplied by the weight. Known
            also of a module in float32, which may be cast later.
        rounds_its_own_way: in half precision, it rounds elsewhere than `rounds_twice` says, for example its sums. Not
            determined of methods with running statistics.
        channels_last: whether its output is in that memory format whatever its input is, as of a norm that permutes.
        running: whether it has running statistics.
        synced: whether it takes statistics over several processes.
        pattern: the region, of a `normkit.Norm`.
        extras: children applied after the norm: ``"drop"``, ``"act"``.
        activation: what one of normkit's layers applies itself, by its name.
        origin: the package its class comes from: ``"torch"``, ``"normkit"``, ``"timm"``, ``"transformers"``, ...
    """

    kind: str | None = None
    reason: str = ""
    base: str | None = None
    gate: Gate | None = None
    per_head: bool = False
    shape: tuple[int, ...] = ()
    axis: Literal["first", "last"] = "last"
    rank: int | None = None
    groups: int | None = None
    eps: float | None = None
    weight: bool = False
    bias: bool = False
    offset: float = 0.0
    rounds_twice: bool = False
    rounds_its_own_way: bool = False
    channels_last: bool = False
    running: bool = False
    synced: bool = False
    pattern: str | None = None
    extras: tuple[str, ...] = ()
    activation: str | None = None
    origin: str = ""

    @property
    def channels(self) -> int:
        """Number of features that have a weight of their own."""
        return math.prod(self.shape)

    @property
    def affine(self) -> bool:
        """Whether there is a weight or a bias."""
        return self.weight or self.bias

    @property
    def row(self) -> catalog.Method | None:
        """The method in the catalog; None if the norm is not understood."""
        return None if self.kind is None else catalog.find(self.kind)

    @property
    def centers(self) -> bool:
        """Whether its method, if it is known, subtracts the mean."""
        name = self.kind or self.base
        return name is None or catalog.find(name).center

    @property
    def last_dims(self) -> tuple[int, ...]:
        """The dimensions that share a mean and a variance, counted from the last, where the features are there."""
        return (-1,) if self.per_head else tuple(range(-max(len(self.shape), 1), 0))

    @property
    def may_keep_statistics(self) -> bool:
        """Whether norms of its method can keep running statistics."""
        return self.row is not None and self.row.keeps_statistics

    @property
    def over_samples(self) -> bool:
        """Whether the samples of a batch share statistics in training."""
        return self.row is not None and self.row.over_samples

    @property
    def per_channel(self) -> bool:
        """Whether each channel has statistics of its own."""
        return self.row is not None and self.row.per_channel

    @property
    def region(self) -> Region | None:
        """The elements that share statistics, where channels are dimension 1; None if that is not known."""
        if self.row is None or self.row.target is None:
            return None
        return bound(self.row.target, {} if self.groups is None else {"g": self.groups})

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)
