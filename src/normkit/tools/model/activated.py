"""Layers that only tools make: a norm with its activation, one without statistics, a layer followed by a norm."""

from __future__ import annotations

import copyreg
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from normkit.functional import normalize
from normkit.layers import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    FilterResponseNorm2d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    LayerNorm2d,
    Norm,
    RMSNorm,
    SyncBatchNorm,
)
from normkit.layers.base.checks import check_channels, check_rank


class ChannelAffine(nn.Module):
    """Scale and shift each channel, as a norm does whose statistics are constants.

    ``y = x * weight + bias``.

    Args:
        num_channels: number of channels C.
        device, dtype: of the parameters.

    Returns:
        From ``forward``, for (N, C, ...): a tensor with the input's shape and dtype.

    Raises:
        ShapeError: from ``forward``: fewer than two dimensions, or another number of channels.

    Example:
        >>> ChannelAffine(3)(torch.ones(2, 3, 4)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(
        self, num_channels: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.weight = nn.Parameter(torch.ones(num_channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(num_channels, device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        """Scale and shift."""
        if input.dim() < 2:
            check_rank(input, {2: "(N, C, ...)"})
        check_channels(input, 1, self.num_channels)
        shape = (-1, *(1,) * (input.dim() - 2))
        return torch.addcmul(self.bias.view(shape), input, self.weight.view(shape))

    def extra_repr(self) -> str:
        return f"{self.num_channels}"


class NormedLayer(nn.Sequential):
    """A ``layer`` and the ``norm`` that `normkit.insert` has added after it.

    Attributes such as ``dilation`` and ``weight`` are those of the layer, and further arguments go to the layer.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The norm of the layer's output."""
        return self.norm(self.layer(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Names with an underscore are torch's own state of a module, and layer and norm each have theirs.
            if name.startswith("_") or name in self._modules or "layer" not in self._modules:
                raise
        return getattr(self.layer, name)


class WithActivation(nn.Module):
    """Abstract: a norm followed by the ``drop`` and ``act`` that it came with; fused where that is possible."""

    fuses: ClassVar[bool] = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Normalize, then drop and activate; the arguments are those of the norm."""
        children = self._modules
        name = fusible(children) if self.fuses and not _observed(children) else None
        if name is not None:
            return super().forward(*args, **kwargs if name == "none" else {"activation": name, **kwargs})
        y = super().forward(*args, **kwargs)
        for key in ("drop", "act"):
            child = children.get(key)
            y = y if child is None else child(y)
        return y


def _observed(children: Mapping[str, nn.Module | None]) -> bool:
    """Whether hooks watch the drop or activation: they would not be called if it were fused into the norm."""
    for child in children.values():
        if child is not None and (
            child._forward_hooks or child._forward_pre_hooks or child._backward_hooks or child._backward_pre_hooks
        ):
            return True
    return False


class SyncBatchNormAct(WithActivation, SyncBatchNorm):
    """`normkit.SyncBatchNorm`, then ``drop`` and ``act``."""


class BatchNorm1dAct(WithActivation, BatchNorm1d):
    """`normkit.BatchNorm1d`, then ``drop`` and ``act``."""

    synchronized = SyncBatchNormAct


class BatchNorm2dAct(WithActivation, BatchNorm2d):
    """`normkit.BatchNorm2d`, then ``drop`` and ``act``."""

    synchronized = SyncBatchNormAct


class BatchNorm3dAct(WithActivation, BatchNorm3d):
    """`normkit.BatchNorm3d`, then ``drop`` and ``act``."""

    synchronized = SyncBatchNormAct


class InstanceNorm1dAct(WithActivation, InstanceNorm1d):
    """`normkit.InstanceNorm1d`, then ``drop`` and ``act``."""


class InstanceNorm2dAct(WithActivation, InstanceNorm2d):
    """`normkit.InstanceNorm2d`, then ``drop`` and ``act``."""


class InstanceNorm3dAct(WithActivation, InstanceNorm3d):
    """`normkit.InstanceNorm3d`, then ``drop`` and ``act``."""


class GroupNormAct(WithActivation, GroupNorm):
    """`normkit.GroupNorm`, then ``drop`` and ``act``."""


class LayerNormAct(WithActivation, LayerNorm):
    """`normkit.LayerNorm`, then ``drop`` and ``act``."""


class LayerNorm2dAct(WithActivation, LayerNorm2d):
    """`normkit.LayerNorm2d`, then ``drop`` and ``act``."""


class RMSNormAct(WithActivation, RMSNorm):
    """`normkit.RMSNorm`, then ``drop`` and ``act``."""


class FilterResponseNorm2dAct(WithActivation, FilterResponseNorm2d):
    """`normkit.FilterResponseNorm2d`, then ``drop`` and ``act``."""


class NormAct(WithActivation, Norm):
    """`normkit.Norm`, then ``drop`` and ``act``."""


class ChannelAffineAct(WithActivation, ChannelAffine):
    """`ChannelAffine`, then ``drop`` and ``act``."""

    fuses = False


class LayerNorm2dLast(LayerNorm2dAct):
    """`normkit.LayerNorm2d` whose output is channels-last, as of a layer norm between two permutes.

    The layers after such a norm were run in that layout; a convolution can be a third slower in the other.
    """

    def forward(self, input: Tensor, **kwargs: Any) -> Any:
        """Normalize."""
        if input.dim() == 4:
            input = input.contiguous(memory_format=torch.channels_last)
        return super().forward(input, **kwargs)


class NormBesideWeight(Norm):
    """`normkit.Norm` without weight; its buffer ``weight`` is for kernels of other libraries, which need one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.weight
        self.register_buffer("weight", None, persistent=False)

    def forward(self, x: Tensor, **kwargs: Any) -> Any:
        """Normalize."""
        activation = kwargs.pop("activation", None) or self.activation
        return normalize(x, self._region, None, None, self.eps, self.center, activation=activation, **kwargs)


_ACTIVATED: dict[type[nn.Module], type[nn.Module]] = {
    cast("type[nn.Module]", cls.__bases__[1]): cls
    for cls in (
        BatchNorm1dAct,
        BatchNorm2dAct,
        BatchNorm3dAct,
        InstanceNorm1dAct,
        InstanceNorm2dAct,
        InstanceNorm3dAct,
        GroupNormAct,
        LayerNormAct,
        LayerNorm2dAct,
        RMSNormAct,
        FilterResponseNorm2dAct,
        NormAct,
        ChannelAffineAct,
    )
}


def activated(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that applies ``drop`` and ``act`` after this one of normkit's, or itself if it does."""
    return _ACTIVATED.get(cls, cls)


class _Joined(type):
    """The metaclass of the classes that `joined` makes at run time.

    pickle stores a class by its name, under which these cannot be found. For this metaclass it stores the two bases,
    from which `joined` makes the class again.
    """


copyreg.pickle(_Joined, lambda made: (cast(Any, joined), made.__bases__))


def joined(ours: type[nn.Module], theirs: type[nn.Module]) -> type[nn.Module]:
    """A subclass of both that computes as ours, under the name of ours; made when it is first needed.

    The tools of a library recognise by its class that a norm has an activation: timm's replace a `BatchNormAct2d` by a
    `FrozenBatchNormAct2d`, and any other batch norm by one without activation. So the class must inherit from theirs.
    Written out, there would be one for every pair of classes, and timm would have to be imported.
    """
    if (ours, theirs) not in _JOINED:
        plain = ours.__bases__[-1]
        names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": ours.__doc__}
        synchronized = vars(ours).get("synchronized")
        more = {} if synchronized is None else {"synchronized": joined(synchronized, theirs)}
        _JOINED[ours, theirs] = cast("type[nn.Module]", _Joined(plain.__name__, (ours, theirs), names | more))
    return _JOINED[ours, theirs]


_JOINED: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def fusible(extras: Mapping[str, nn.Module | None]) -> str | None:
    """The name of the activation, if a norm came with nothing but that; ``none`` if it came with nothing at all.

    >>> fusible({"drop": nn.Identity(), "act": nn.SiLU(inplace=True)})
    'silu'
    """
    drop, act = extras.get("drop"), extras.get("act")
    if not (drop is None or isinstance(drop, nn.Identity)):
        return None
    if act is None or isinstance(act, nn.Identity):
        return "none"
    if isinstance(act, nn.LeakyReLU):
        return "leaky_relu" if act.negative_slope == 0.01 else None
    if isinstance(act, nn.GELU) and act.approximate == "tanh":
        return "gelu_tanh"
    return _NAMES.get(type(act))


_NAMES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}


def module_of(activation: str) -> nn.Module:
    """The activation as a module.

    >>> module_of("gelu_tanh")
    GELU(approximate='tanh')
    """
    made = {name: cls for cls, name in _NAMES.items()}
    if activation in made:
        return made[activation]()
    return nn.GELU(approximate="tanh") if activation == "gelu_tanh" else nn.LeakyReLU()
