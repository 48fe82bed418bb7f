"""What functions fuse with a norm, and the same composed of PyTorch's functions: the cases of benchmarks/extras.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.contestants import groups
from normkit import functional as N

EPS = 1e-5
REDUCED = {"batch_norm": (0, 2, 3), "instance_norm": (2, 3), "layer_norm": (2,), "rms_norm": (2,)}
ROWS = ("layer_norm", "rms_norm")


@dataclass(frozen=True)
class Operands:
    """The tensors of a call. `x` may be a slice of a larger tensor; `scale` and `shift` vary by sample and channel."""

    x: Tensor
    w: Tensor
    b: Tensor
    residual: Tensor
    mask: Tensor
    scale: Tensor
    shift: Tensor

    def leaves(self) -> list[Tensor]:
        return [self.x, self.w, self.b, self.residual, self.scale, self.shift]


Side = Callable[[str, Operands], Any]


@dataclass(frozen=True)
class Case:
    """One argument, by both sides.

    Attributes:
        torch, normkit: the computation; given the method and its tensors.
        moved: tensors of the size of x that the argument adds to what the plain norm reads and writes: in the forward,
            and in forward and backward together.
        methods: those that it is timed with; None for all.
        large: whether it is timed at the largest size alone.
        strided: whether x is a slice of a tensor of three times its width.
    """

    torch: Side
    normkit: Side
    moved: tuple[int, int] = (0, 0)
    methods: tuple[str, ...] | None = None
    large: bool = False
    strided: bool = False


def by_torch(method: str, x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    match method:
        case "batch_norm":
            return F.batch_norm(x, None, None, w, b, training=True)
        case "instance_norm":
            return F.instance_norm(x, None, None, w, b)
        case "group_norm":
            return F.group_norm(x, groups(x.shape[1]), w, b)
        case "layer_norm":
            return F.layer_norm(x, x.shape[-1:], w, b)
        case _:
            return F.rms_norm(x, x.shape[-1:], w, EPS)


def by_normkit(method: str, x: Tensor, w: Tensor | None, b: Tensor | None, **extras: Any) -> Any:
    match method:
        case "batch_norm":
            return N.batch_norm(x, None, None, w, b, training=True, **extras)
        case "instance_norm":
            return N.instance_norm(x, None, None, w, b, **extras)
        case "group_norm":
            return N.group_norm(x, groups(x.shape[1]), w, b, **extras)
        case "layer_norm":
            return N.layer_norm(x, x.shape[-1:], w, b, **extras)
        case _:
            return N.rms_norm(x, x.shape[-1:], w, EPS, **extras)


def _masked_by_torch(method: str, o: Operands) -> Tensor:
    """The usual formula: sums over the valid elements, divided by their number."""
    x, w, b, mask = o.x, o.w, o.b, o.mask
    image = x.dim() == 4
    shape = x.shape
    if method == "group_norm":
        x, mask = x.unflatten(1, (groups(shape[1]), -1)), mask.unsqueeze(1)
    reduced = (2, 3, 4) if method == "group_norm" else REDUCED[method]
    valid = mask.to(x.dtype)
    count = valid.expand_as(x).sum(reduced, keepdim=True).clamp(min=1)
    mean = 0 if method == "rms_norm" else (x * valid).sum(reduced, keepdim=True) / count
    var = ((x - mean).square() * valid).sum(reduced, keepdim=True) / count
    y = ((x - mean) * (var + EPS).rsqrt()).reshape(shape)
    w, b = (t[:, None, None] if image else t for t in (w, b))
    y = y * w if method == "rms_norm" else y * w + b
    return y * valid.reshape(mask.shape if method != "group_norm" else mask.squeeze(1).shape)


def _masked(method: str, o: Operands) -> Any:
    return by_normkit(method, o.x, o.w, o.b, mask=o.mask[:, 0] if o.x.dim() == 4 else o.mask[..., 0])


def _norm(method: str, o: Operands) -> Tensor:
    return by_torch(method, o.x, o.w, o.b)


def _own(**extras: Any) -> Side:
    """Our call; a text among the arguments names an attribute of the operands."""
    names = {key for key, value in extras.items() if isinstance(value, str) and value in Operands.__annotations__}

    def side(method: str, o: Operands) -> Any:
        given = {key: getattr(o, value) if key in names else value for key, value in extras.items()}
        return by_normkit(method, o.x, o.w, o.b, **given)

    return side


def _zero_centred_by_torch(method: str, o: Operands) -> Tensor:
    return by_torch(method, o.x, 1 + o.w, o.b)


def _with_residual(method: str, o: Operands) -> tuple[Tensor, Tensor]:
    return by_torch(method, total := o.x + o.residual, o.w, o.b), total


CASES: dict[str, Case] = {
    "relu": Case(lambda m, o: F.relu(_norm(m, o)), _own(activation="relu")),
    "silu": Case(lambda m, o: F.silu(_norm(m, o)), _own(activation="silu")),
    "gelu": Case(lambda m, o: F.gelu(_norm(m, o)), _own(activation="gelu")),
    "residual": Case(_with_residual, _own(residual="residual", return_residual=True), (2, 3)),
    "mask": Case(_masked_by_torch, _masked),
    "mask, 100 MB": Case(_masked_by_torch, _masked, large=True),
    "cast before": Case(
        lambda m, o: by_torch(m, o.x, None, None) * o.w + (0 if m == "rms_norm" else o.b),
        _own(cast="before"),
        methods=ROWS,
    ),
    "zero-centred weight": Case(_zero_centred_by_torch, _own(zero_centered=True), methods=ROWS),
    "strided rows": Case(_norm, _own(), methods=ROWS, strided=True),
    "gate": Case(lambda m, o: _norm(m, o) * F.silu(o.residual), _own(gate="residual", gate_activation="silu"), (1, 3)),
    "gate first": Case(
        lambda m, o: by_torch(m, o.x * F.silu(o.residual), o.w, o.b),
        _own(gate="residual", gate_activation="silu", gate_first=True),
        (1, 3),
    ),
    "skip": Case(lambda m, o: _norm(m, o) + o.residual, _own(skip="residual"), (1, 1)),
    "skip and relu": Case(
        lambda m, o: F.relu(_norm(m, o) + o.residual), _own(skip="residual", activation="relu"), (1, 3)
    ),
    "modulation": Case(
        lambda m, o: by_torch(m, o.x, None, None) * o.scale + (0 if m == "rms_norm" else o.shift),
        lambda m, o: by_normkit(m, o.x, o.scale, o.shift) if m != "rms_norm" else by_normkit(m, o.x, o.scale, None),
    ),
}


def operands(shape: tuple[int, ...], layout: str, dtype: torch.dtype, device: str, *, strided: bool) -> Operands:
    """Random tensors; the weight of a layer, a mask with a fifth of padding."""
    torch.manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        t = torch.randn(sizes, device=device).to(dtype)
        return t.contiguous(memory_format=torch.channels_last) if layout == "channels_last" and t.dim() == 4 else t

    image = len(shape) == 4
    channels = shape[1] if image else shape[-1]
    x = draw(*shape[:-1], 3 * shape[-1])[..., : shape[-1]] if strided else draw(*shape)
    small = (shape[0], channels, 1, 1) if image else (shape[0], 1, channels)
    mask = torch.rand(shape[0], 1, *shape[2:]) if image else torch.rand(*shape[:2], 1)
    small_ones = (torch.randn(small, device=device).to(dtype) for _ in range(2))
    return Operands(x, draw(channels), draw(channels), draw(*shape), (mask > 0.2).to(device), *small_ones)
