"""torch's norms as they are from 2.12 on, where torch is older: with ``bias=``, which their text says, too."""

from __future__ import annotations

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
