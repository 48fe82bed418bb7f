"""Regions, each as normkit's function and in plain torch, with the shapes of the tensors that it is given."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from normkit import functional

SHAPE = (5, 6, 7)  # no size is a multiple of the number of processes
VALID = torch.arange(6) < 4


def masked(y: Tensor) -> Tensor:
    return y * VALID[:, None]


def pixels(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.layer_norm(x.transpose(1, 2), x.shape[1:2], w, b, 1e-6).transpose(1, 2)


def everything(x: Tensor, w: Tensor, b: Tensor, r: Tensor, g: Tensor, s: Tensor) -> Tensor:
    return functional.layer_norm(
        x, (7,), w, b, residual=r, gate=g, skip=s, gate_activation="silu", activation="tanh", mask=VALID
    )


def gated_before(x: Tensor, g: Tensor, s: Tensor) -> Tensor:
    return functional.rms_norm(x, (7,), gate=g, skip=s, gate_activation="silu", gate_first=True, mask=VALID)


Function = Callable[..., Tensor]
# normkit's function, plain torch, the shape of x and those of the parameters.
REGIONS: dict[str, tuple[Function, Function, tuple[int, ...], list[tuple[int, ...]]]] = {
    "layer": (
        lambda x, w, b: functional.layer_norm(x, (7,), w, b),
        lambda x, w, b: F.layer_norm(x, (7,), w, b),
        SHAPE,
        [(7,), (7,)],
    ),
    "layer, two dimensions": (
        lambda x, w: functional.layer_norm(x, (6, 7), w),
        lambda x, w: F.layer_norm(x, (6, 7), w),
        SHAPE,
        [(6, 7)],
    ),
    "rms": (
        lambda x, w: functional.rms_norm(x, (7,), w, 1e-6),
        lambda x, w: F.rms_norm(x, (7,), w, 1e-6),
        SHAPE,
        [(7,)],
    ),
    "groups that processes share": (
        lambda x, w, b: functional.group_norm(x, 3, w, b),
        lambda x, w, b: F.group_norm(x, 3, w, b),
        SHAPE,
        [(6,), (6,)],
    ),
    "groups": (
        lambda x, w, b: functional.group_norm(x, 2, w, b),
        lambda x, w, b: F.group_norm(x, 2, w, b),
        SHAPE,
        [(6,), (6,)],
    ),
    "instance": (
        lambda x, w, b: functional.instance_norm(x, None, None, w, b),
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
        SHAPE,
        [(6,), (6,)],
    ),
    "batch": (
        lambda x, w, b: functional.batch_norm(x, None, None, w, b, training=True),
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        SHAPE,
        [(6,), (6,)],
    ),
    "pixels": (functional.layer_norm2d, pixels, SHAPE, [(6,), (6,)]),
    "pattern with sizes": (
        lambda x, w, b: functional.normalize(x, "b [c=6] ...", w, b, 1e-6),
        pixels,
        SHAPE,
        [(6,), (6,)],
    ),
    "everything": (
        everything,
        lambda x, w, b, r, g, s: masked((F.layer_norm(x + r, (7,), w, b) * F.silu(g) + s).tanh()),
        SHAPE,
        [(7,), (7,), SHAPE, SHAPE, SHAPE],
    ),
    "gated before": (
        gated_before,
        lambda x, g, s: masked(F.rms_norm(x * F.silu(g), (7,), eps=torch.finfo(torch.float64).eps) + s),
        SHAPE,
        [SHAPE, SHAPE],
    ),
    "modulated": (
        lambda x, w, b: functional.layer_norm(x, (7,), w, b),
        lambda x, w, b: F.layer_norm(x, (7,)) * w + b,
        SHAPE,
        [(5, 1, 7), (5, 1, 7)],
    ),
    "an empty part": (
        lambda x, w, b: functional.group_norm(x, 2, w, b),
        lambda x, w, b: F.group_norm(x, 2, w, b),
        (1, 6, 1),
        [(6,), (6,)],
    ),
}
