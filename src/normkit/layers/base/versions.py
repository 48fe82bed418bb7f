"""How the layers of torch's versions differ, and nothing else: before 2.12 most norms took no ``bias=``."""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules import batchnorm

HAS_BIAS = "bias" in inspect.signature(nn.GroupNorm).parameters


def _lend_bias(method: Callable[..., None]) -> Callable[..., None]:
    """Let a method of torch's that takes weight and bias for a pair work on a layer without bias."""

    @functools.wraps(method)
    def call(self: Any, *args: Any) -> None:
        lent = self.weight is not None and self.bias is None
        if lent:
            self.bias = copy.deepcopy(self.weight)
        try:
            method(self, *args)
        finally:
            if lent:
                self.register_parameter("bias", None)

    return call


def make(layer: nn.Module, kind: type[nn.Module], *args: Any, bias: bool) -> None:
    """Initialize a layer as torch's class `kind` does, with ``bias=`` in every version.

    Not by super(): a class that joins ours and another subclass of torch's is made as ours.
    """
    if HAS_BIAS:
        kind.__init__(layer, *args, bias=bias)
        return
    kind.__init__(layer, *args)
    if not bias:
        layer.register_parameter("bias", None)


class TakesBias(nn.Module):
    """Abstract: comes before a norm of torch's, which then knows layers without bias in every version."""

    if not (TYPE_CHECKING or HAS_BIAS):

        @_lend_bias
        def reset_parameters(self) -> None:
            super().reset_parameters()

        def extra_repr(self) -> str:
            return re.sub(r"affine=\w+", rf"\g<0>, bias={self.bias is not None}", super().extra_repr())


initialize_parameters: Callable[..., None] = batchnorm._LazyNormBase.initialize_parameters
"""What a lazy layer does with its first input."""
if not HAS_BIAS:
    initialize_parameters = _lend_bias(initialize_parameters)
