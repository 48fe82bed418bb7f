"""What older versions of torch do otherwise: most norms take no ``bias=`` before 2.12, and their text says none."""

from __future__ import annotations

import functools
import inspect
import re

import torch
from torch import nn

TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])


def takes_bias(layer: type[nn.Module]) -> bool:
    """Whether torch's layer can be made without bias."""
    return "bias" in inspect.signature(layer).parameters


def of_torch(name: str, *args: object, **kwargs: object) -> nn.Module:
    """torch's layer of this name and arguments."""
    made: type[nn.Module] = getattr(nn, name)
    if takes_bias(made):
        return made(*args, **kwargs)
    bias = kwargs.pop("bias", True)
    layer = made(*args, **kwargs)
    if not bias:
        layer.register_parameter("bias", None)
    return layer


def text(layer: nn.Module) -> str:
    """What torch's layer looks like."""
    if not hasattr(layer, "bias") or "bias=" in repr(layer):
        return repr(layer)
    return re.sub(r"affine=\w+", rf"\g<0>, bias={layer.bias is not None}", repr(layer))


@functools.cache
def evaluation_moves_statistics() -> bool:
    """Whether torch's instance norm in evaluation rounds its running statistics anew, as old versions do."""
    layer = nn.InstanceNorm1d(64, track_running_stats=True).eval()
    before = layer.running_mean.uniform_(1, 2).clone()
    layer(torch.ones(6, 64, 5))
    return not torch.equal(layer.running_mean, before)
