"""Layer normalization: all features of one sample or token; and of one pixel, channels first."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from normkit import functional
from normkit.functional.extras import Extras, Output
from normkit.functional.precision import Cast
from normkit.layers._checks import check_channels, checked, with_activation
from normkit.layers._versions import TakesBias


@checked
class LayerNorm(TakesBias, nn.LayerNorm):
    """Normalize the last dimensions of each sample or token.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and variance over `normalized_shape`; the same in
    training and evaluation.

    Args:
        normalized_shape: the sizes of the last dimensions; one number for the last alone.
        eps: added to the variance, in units of the input squared.
        elementwise_affine: whether there are weight and bias, of shape `normalized_shape`.
        bias: whether there is a bias beside the weight.
        cast: ``"after"``: the weight is multiplied in float32, the result cast to the input's dtype; ``"before"``:
            the cast comes first, as in Llama. No difference in float32.
        zero_centered: the weight is kept around 0 and 1 is added to it, as in Gemma.
        device, dtype: of the parameters; float32 may stand beside half-precision input.

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

    options: ClassVar = {"cast": "after", "zero_centered": False}
    cast: Cast
    zero_centered: bool

    def reset_parameters(self) -> None:
        """Weight as if it were 1, bias 0."""
        super().reset_parameters()
        if self.zero_centered and self.weight is not None:
            nn.init.zeros_(self.weight)

    def forward(self, input: Tensor, **extras: Unpack[Extras]) -> Output:
        """Normalize; `extras`: mask, lengths, residual, activation, return_residual, as in `normkit.functional`."""
        return functional.layer_norm(
            input,
            self.normalized_shape,
            self.weight,
            self.bias,
            self.eps,
            cast=self.cast,
            zero_centered=self.zero_centered,
            **with_activation(self, extras),
        )


@checked
class LayerNorm2d(nn.Module):
    """Normalize each pixel over its channels, channels first: no permute before and after.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and variance over the channels of one position.

    Args:
        num_channels: number of channels C.
        eps: added to the variance, in units of the input squared.
        affine: whether there are weight and bias, of shape (C,).
        bias: whether there is a bias beside the weight.
        device, dtype: of the parameters; float32 may stand beside half-precision input.

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
    ) -> None:
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

    def forward(self, input: Tensor, **extras: Unpack[Extras]) -> Output:
        """Normalize; `extras`: mask, lengths, residual, activation, return_residual, as in `normkit.functional`."""
        if input.dim() > 1:
            check_channels(input, 1, self.num_channels)
        return functional.layer_norm2d(input, self.weight, self.bias, self.eps, **with_activation(self, extras))

    def extra_repr(self) -> str:
        return f"{self.num_channels}, eps={self.eps}, affine={self.affine}, bias={self.bias is not None}"
