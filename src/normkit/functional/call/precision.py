"""Where a weight is multiplied in half precision, and weights stored around 0: language models differ in both."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from normkit.errors import ArgumentError, nearest
from normkit.kernels.dtypes import arithmetic_dtype

Cast = Literal["after", "before"]
"""When the result is cast to the input's dtype: after the weight, multiplied in float32 (torch, T5 in mixed precision,
Gemma), or before it, the product then in the input's dtype (Llama, Mistral, Qwen)."""

CASTS: tuple[str, ...] = ("after", "before")


def check_cast(name: str, cast: str) -> None:
    """One of the two conventions."""
    if cast not in CASTS:
        raise ArgumentError(
            f"cast of {name} must be 'after' (the weight in float32, then the cast) or 'before' (the cast, then the "
            f"weight), got {cast!r}: {nearest(str(cast), CASTS)}"
        )


def rounded(weight: Tensor | None, x: Tensor) -> Tensor | None:
    """A float64 weight in the arithmetic of x; others as they are."""
    return weight if weight is None or weight.dtype is not torch.float64 else weight.to(arithmetic_dtype(x.dtype))


def affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``y * weight + bias`` in the dtype of y, for parameters that broadcast against it."""
    if weight is not None and bias is not None:
        return torch.addcmul(as_dtype(bias, y), y, as_dtype(weight, y))
    y = y if weight is None else y * as_dtype(weight, y)
    return y if bias is None else y + as_dtype(bias, y)


def as_dtype(parameter: Tensor, x: Tensor) -> Tensor:
    """A parameter in the dtype of x; `to` takes as long as a small sum even where there is nothing to do."""
    return parameter if parameter.dtype is x.dtype else parameter.to(x.dtype)
