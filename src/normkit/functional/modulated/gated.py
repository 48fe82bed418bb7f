"""Root mean square normalization with a gate, as in state space models and gated attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack, overload

from torch import Tensor

from normkit.errors import ArgumentError, whole_number
from normkit.functional.call.checks import check_call
from normkit.functional.call.precision import CASTS, Cast, check_cast
from normkit.functional.call.spec import Spec, carry_out, with_conventions
from normkit.functional.extras import Fusions, Output
from normkit.functional.layer import LAST_DIM, check_last

GATED = with_conventions(Spec("gated_rms_norm", check_last, center=False, over_last=True, lenient=True))


class Options(Fusions, total=False):
    """The keyword arguments of `gated_rms_norm`, without ``return_residual``."""

    group_size: int | None
    gate_first: bool
    gate_activation: str | None
    cast: Cast
    zero_centered: bool
    skip: Tensor | None


@overload
def gated_rms_norm(
    input: Tensor,
    gate: Tensor | None,
    weight: Tensor | None = None,
    eps: float | None = 1e-5,
    **options: Unpack[Options],
) -> Tensor: ...
@overload
def gated_rms_norm(
    input: Tensor,
    gate: Tensor | None,
    weight: Tensor | None = None,
    eps: float | None = 1e-5,
    *,
    return_residual: Literal[True],
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]: ...
@overload
def gated_rms_norm(
    input: Tensor,
    gate: Tensor | None,
    weight: Tensor | None = None,
    eps: float | None = 1e-5,
    *,
    return_residual: bool,
    **options: Unpack[Options],
) -> Output: ...
def gated_rms_norm(
    input: Tensor,
    gate: Tensor | None,
    weight: Tensor | None = None,
    eps: float | None = 1e-5,
    *,
    group_size: int | None = None,
    gate_first: bool = False,
    gate_activation: str | None = "silu",
    cast: Cast = "after",
    zero_centered: bool = False,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    activation: str | None = None,
    skip: Tensor | None = None,
) -> Output:
    """Divide by the root mean square of the last dimension, and multiply by a function of a gate.

    ``y = x / sqrt(mean(x ** 2) + eps) * weight * silu(gate)``; with `gate_first` x is multiplied by ``silu(gate)``
    before all else, and the result is not.

    Args:
        input: (..., hidden_size), any strides.
        gate: of the input's shape; another dtype is cast to the input's. None computes ``rms_norm``.
        weight: (hidden_size,) or None; float64 is rounded to the arithmetic of the input.
        eps: added to the mean square; None means the machine epsilon of the arithmetic.
        group_size: the number of neighbouring features that share a mean square; None for all of them.
        gate_first: whether the gate multiplies the input, as in Mamba 2, and not the normalized values.
        gate_activation: the function of the gate, by a name that `activation` may have; None for the gate itself.
        cast: ``"after"``: weight and gate are multiplied in float32, the result cast to the input's dtype;
            ``"before"``: the normalized values are cast before the weight, as in Qwen3-Next and Mamba 2. No difference
            in float32.
        zero_centered: the weight is stored around 0, and 1 is added to it.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`.
        skip: of the input's shape; added to the gated values.

    Returns:
        A tensor with the input's shape, dtype and memory layout.

    Raises:
        ShapeError: a weight or gate of another shape.
        ArgumentError: a `group_size` that does not divide the features, an unknown `gate_activation`.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> x, gate = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 100.0]])
        >>> functional.gated_rms_norm(x, gate, gate_activation="sigmoid")
        tensor([[0.4243, 1.1314]])

    Source: Dao & Gu 2024, arXiv:2405.21060, for the gate; Zhang & Sennrich 2019, arXiv:1910.07467, for the norm.
    """
    check_call("gated_rms_norm", input, 0.0 if eps is None else eps)
    width = tuple(input.shape[-1:])
    pattern = LAST_DIM
    if group_size is not None and width:
        pattern = f"... (g={groups_of('gated_rms_norm', width[0], group_size)} [c])"
    if gate is not None and gate.dtype is not input.dtype:
        gate = gate.to(input.dtype)
    around = (gate, skip, None, False) if gate is None else (gate, skip, gate_activation, gate_first)
    if cast not in CASTS:
        check_cast("gated_rms_norm", cast)
    fused = (mask, lengths, residual, return_residual, activation, *around)
    return carry_out(GATED[cast, zero_centered], pattern, input, weight, None, eps, fused, width)


def groups_of(name: str, width: int, group_size: int) -> int:
    """The number of groups of that size.

    Raises:
        ArgumentError: the size does not divide the width.
    """
    if whole_number(f"group_size of {name}", group_size) < 1 or width % group_size:
        raise ArgumentError(
            f"group_size of {name} must divide the {width} features, got {group_size}: give a divisor, or None for all"
        )
    return width // group_size
