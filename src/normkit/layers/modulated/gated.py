"""Root mean square normalization with a gate as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack, overload

import torch
from torch import Tensor, nn

from normkit import functional
from normkit.functional.call.checks import check_call
from normkit.functional.call.fusions import check_activation
from normkit.functional.call.precision import Cast
from normkit.functional.extras import Fusions, Output
from normkit.functional.layer import check_last
from normkit.functional.modulated.gated import groups_of
from normkit.layers.base.checks import named
from normkit.layers.base.layer import LastDims, check_count, check_eps, registered


class GatedRMSNorm(LastDims):
    """Divide the last dimension by its root mean square, and multiply by a function of a gate.

    ``y = x / sqrt(mean(x ** 2) + eps) * weight * silu(gate)``; with `gate_first` x is multiplied by ``silu(gate)``
    before all else, and the result is not. The same in training and evaluation.

    Args:
        hidden_size: number of features, the last dimension of the input.
        eps: added to the mean square; None for the machine epsilon of the arithmetic.
        group_size: the number of neighbouring features that share a mean square; None for all of them.
        gate_first: whether the gate multiplies the input, as in Mamba 2 (``norm_before_gate=False``), and not the
            normalized values.
        gate_activation: the function of the gate, by a name that `activation` may have; None for the gate itself.
        elementwise_affine: whether there is a weight, of shape (hidden_size,).
        cast: ``"after"``: weight and gate are multiplied in float32, the result cast to the input's dtype;
            ``"before"``: the normalized values are cast before the weight, as in Qwen3-Next and Mamba 2. No difference
            in float32.
        zero_centered: the weight is stored around 0, and 1 is added to it.
        device, dtype: of the weight; float32 is possible with half-precision input.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``, for x and a gate of the same shape (..., hidden_size): a tensor with the shape, dtype and
        memory layout of x. Without a gate, the norm alone.

    Raises:
        ArgumentError: hidden_size below 1, a group_size that does not divide it, eps below 0.
        ShapeError: from ``forward``, naming the layer: an input or a gate of another shape.

    Example:
        >>> import torch, normkit
        >>> layer = normkit.GatedRMSNorm(64, group_size=16, gate_first=True)
        >>> x, gate = torch.randn(2, 2, 8, 64)
        >>> layer(x, gate).shape
        torch.Size([2, 8, 64])

    Source: Dao & Gu 2024, arXiv:2405.21060, for the gate; Zhang & Sennrich 2019, arXiv:1910.07467, for the norm.
    """

    options: ClassVar = {**LastDims.options, "gate_first": False, "gate_activation": "silu"}
    gate_first: bool = False
    gate_activation: str | None = "silu"
    weight: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        eps: float | None = 1e-5,
        group_size: int | None = None,
        gate_first: bool = False,
        gate_activation: str | None = "silu",
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        cast: Cast = "after",
        zero_centered: bool = False,
    ) -> None:
        check_count(self, "hidden_size", hidden_size)
        check_eps(self, eps)
        if group_size is not None:
            groups_of(type(self).__name__, hidden_size, group_size)
        check_activation(type(self).__name__, gate_activation)
        self._accept(
            activation=activation,
            cast=cast,
            zero_centered=zero_centered,
            gate_first=gate_first,
            gate_activation=gate_activation,
        )
        super().__init__()
        self.hidden_size = hidden_size
        self.group_size = group_size
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype)) if elementwise_affine else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight as if it were 1."""
        if self.weight is not None:
            nn.init.constant_(self.weight, float(not self.zero_centered))

    @overload
    def forward(self, x: Tensor, gate: Tensor | None, **fused: Unpack[Fusions]) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, gate: Tensor | None, *, return_residual: bool, **fused: Unpack[Fusions]) -> Output: ...
    @named
    def forward(
        self,
        x: Tensor,
        gate: Tensor | None = None,
        mask: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        residual: Tensor | None = None,
        return_residual: bool = False,
        activation: str | None = None,
        skip: Tensor | None = None,
    ) -> Output:
        """Normalize and gate; keywords as in `normkit.functional.extras`, by default the layer's own activation."""
        check_call("the layer", x, self.eps or 0.0)
        check_last("the layer", x, (self.hidden_size,))
        return functional.gated_rms_norm(
            x,
            gate,
            registered(self, "weight"),
            self.eps,
            group_size=self.group_size,
            gate_first=self.gate_first,
            gate_activation=self.gate_activation,
            cast=self.cast,
            zero_centered=self.zero_centered,
            mask=mask,
            lengths=lengths,
            residual=residual,
            return_residual=return_residual,
            activation=activation or self.activation,
            skip=skip,
        )

    def extra_repr(self) -> str:
        return self._with_options(
            f"{self.hidden_size}, eps={self.eps}, group_size={self.group_size}, "
            f"elementwise_affine={self.elementwise_affine}"
        )
