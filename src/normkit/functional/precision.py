"""Where a weight is multiplied in half precision, and weights kept around 0: what language models differ in."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from normkit.errors import ArgumentError, nearest
from normkit.kernels.dtypes import arithmetic_dtype

Cast = Literal["after", "before"]
"""When the result is cast to the input's dtype: after the weight, multiplied in float32 (torch, T5 in mixed precision,
Gemma), or before it, the product then in the input's dtype (Llama, Mistral, Qwen)."""


def check_cast(name: str, cast: str) -> None:
    """One of the two conventions."""
    if cast not in ("after", "before"):
        raise ArgumentError(
            f"cast of {name} must be 'after' (the weight in float32, then the cast) or 'before' (the cast, then the "
            f"weight), got {cast!r}: {nearest(str(cast), ('after', 'before'))}"
        )


def is_cast_first(x: Tensor, cast: Cast) -> bool:
    """Whether the order makes a difference, and the cast comes first."""
    return cast == "before" and x.dtype is not arithmetic_dtype(x.dtype)


def centred_at_one(weight: Tensor | None, x: Tensor) -> Tensor | None:
    """1 + weight, in the arithmetic of x: half precision would lose the digits that keeping it around 0 has saved."""
    return None if weight is None else weight.to(arithmetic_dtype(x.dtype)) + 1
