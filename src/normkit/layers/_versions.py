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


class TakesBias(nn.Module):
    """Abstract: comes before a norm of torch's, which then takes ``bias=`` in every version as it does from 2.12 on."""

    if not (TYPE_CHECKING or HAS_BIAS):

        def __init__(self, *args: Any, bias: bool = True, **kwargs: Any) -> None:
            # Not super(): a class that is ours and another subclass of torch's, too, is made as ours.
            bases = (base for base in type(self).__mro__ if base.__module__.startswith("torch.nn.modules."))
            vars(next(base for base in bases if "__init__" in vars(base)))["__init__"](self, *args, **kwargs)
            if not bias:
                self.register_parameter("bias", None)

        @_lend_bias
        def reset_parameters(self) -> None:
            super().reset_parameters()

        def extra_repr(self) -> str:
            return re.sub(r"affine=\w+", rf"\g<0>, bias={self.bias is not None}", super().extra_repr())


initialize_parameters: Callable[..., None] = batchnorm._LazyNormBase.initialize_parameters
"""What a lazy layer does with its first input."""
if not HAS_BIAS:
    initialize_parameters = _lend_bias(initialize_parameters)


def signature_of(layer: type[nn.Module]) -> inspect.Signature:
    """What a layer can be made with."""
    made = next(base for base in layer.__mro__ if "__init__" in vars(base) and base is not TakesBias)
    found = inspect.signature(vars(made)["__init__"])
    if not issubclass(layer, TakesBias) or "bias" in found.parameters:
        return found
    bias = inspect.Parameter("bias", inspect.Parameter.KEYWORD_ONLY, default=True)
    return found.replace(parameters=[*found.parameters.values(), bias])
