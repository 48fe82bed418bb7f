"""Layer normalization: all features of one sample or token; and of one pixel, channels first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, overload

import torch
from torch import Tensor, nn

from normkit import functional
from normkit.functional.call.precision import Cast
from normkit.functional.extras import Epilogues, Output
from normkit.layers.base.checks import check_channels, named
from normkit.layers.base.layer import LastDims, Layer, Shape, check_count, check_eps, checked_shape, registered
from normkit.layers.base.versions import TakesBias


class LayerNorm(LastDims, TakesBias, nn.LayerNorm):
    """Normalize the last dimensions of each sample or token.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and variance over `normalized_shape`; the same in
    training and evaluation.

    Args:
        normalized_shape: the sizes of the last dimensions; one number for the last alone.
        eps: added to the variance, in units of the input squared.
        elementwise_affine: whether there are weight and bias, of shape `normalized_shape`.
        bias: whether there is a bias as well as a weight.
        cast: ``"after"``: the weight is multiplied in float32, the result cast to the input's dtype; ``"before"``:
            the cast comes first, as in Llama. No difference in float32.
        zero_centered: the weight is stored around 0, and 1 is added to it, as in Gemma.
        device, dtype: of the parameters; float32 is possible with half-precision input.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``: a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: eps below 0, a size below 1.
        ShapeError: from ``forward``, naming the layer: the input does not end with `normalized_shape`.

    Example:
        >>> import torch, normkit
        >>> normkit.LayerNorm(4)(torch.tensor([40000.0, 40001.0, 40002.0, 40003.0])).detach()
        tensor([-1.3416, -0.4472,  0.4472,  1.3416])

    Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450.
    """

    def __init__(
        self,
        normalized_shape: Shape,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        cast: Cast = "after",
        zero_centered: bool = False,
    ) -> None:
        check_eps(self, eps)
        shape = checked_shape(self, normalized_shape)
        self._accept(activation=activation, cast=cast, zero_centered=zero_centered)
        nn.LayerNorm.__init__(self, shape, eps, elementwise_affine, bias, device, dtype)

    @overload
    def forward(self, input: Tensor, **fused: Unpack[Epilogues]) -> Tensor: ...
    @overload
    def forward(self, input: Tensor, *, return_residual: bool, **fused: Unpack[Epilogues]) -> Output: ...
    @named
    def forward(
        self,
        input: Tensor,
        mask: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        residual: Tensor | None = None,
        return_residual: bool = False,
        activation: str | None = None,
        gate: Tensor | None = None,
        skip: Tensor | None = None,
        gate_activation: str | None = None,
        gate_first: bool = False,
    ) -> Output:
        """Normalize; keywords as in `normkit.functional.extras`, by default the layer's own activation."""
        return functional.layer_norm(
            input,
            self.normalized_shape,
            registered(self, "weight"),
            registered(self, "bias"),
            self.eps,
            cast=self.cast,
            zero_centered=self.zero_centered,
            mask=mask,
            lengths=lengths,
            residual=residual,
            return_residual=return_residual,
            activation=activation or self.activation,
            gate=gate,
            skip=skip,
            gate_activation=gate_activation,
            gate_first=gate_first,
        )


class LayerNorm2d(Layer):
    """Normalize each pixel over its channels, channels first: no permute before and after.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and variance over the channels of one position.

    Args:
        num_channels: number of channels C.
        eps: added to the variance, in units of the input squared.
        affine: whether there are weight and bias, of shape (C,).
        bias: whether there is a bias as well as a weight.
        device, dtype: of the parameters; float32 is possible with half-precision input.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``, for (N, C, ...): a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: num_channels below 1, eps below 0.
        ShapeError: from ``forward``, naming the layer: fewer than two dimensions or another number of channels.

    Example:
        >>> import torch, normkit
        >>> y = normkit.LayerNorm2d(16)(torch.randn(2, 16, 8, 8))
        >>> y.shape, bool(y.mean(1).abs().max() < 1e-5)
        (torch.Size([2, 16, 8, 8]), True)

    Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450; per pixel as in ConvNeXt, Liu et al. 2022, arXiv:2201.03545.
    """

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-6,
        affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        check_count(self, "num_channels", num_channels)
        check_eps(self, eps)
        self._accept(activation=activation)
        super().__init__()
        self.num_channels = num_channels
        self.eps = eps
        self.affine = affine
        new = torch.empty(num_channels, device=device, dtype=dtype)
        self.weight = nn.Parameter(new) if affine else None
        self.bias = nn.Parameter(torch.empty_like(new)) if affine and bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @overload
    def forward(self, input: Tensor, **fused: Unpack[Epilogues]) -> Tensor: ...
    @overload
    def forward(self, input: Tensor, *, return_residual: bool, **fused: Unpack[Epilogues]) -> Output: ...
    @named
    def forward(
        self,
        input: Tensor,
        mask: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        residual: Tensor | None = None,
        return_residual: bool = False,
        activation: str | None = None,
        gate: Tensor | None = None,
        skip: Tensor | None = None,
        gate_activation: str | None = None,
        gate_first: bool = False,
    ) -> Output:
        """Normalize; keywords as in `normkit.functional.extras`, by default the layer's own activation."""
        if input.dim() > 1:
            check_channels(input, 1, self.num_channels)
        return functional.layer_norm2d(
            input,
            registered(self, "weight"),
            registered(self, "bias"),
            self.eps,
            mask=mask,
            lengths=lengths,
            residual=residual,
            return_residual=return_residual,
            activation=activation or self.activation,
            gate=gate,
            skip=skip,
            gate_activation=gate_activation,
            gate_first=gate_first,
        )

    def extra_repr(self) -> str:
        return self._with_options(
            f"{self.num_channels}, eps={self.eps}, affine={self.affine}, bias={self.bias is not None}"
        )
