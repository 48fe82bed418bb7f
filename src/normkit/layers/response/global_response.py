"""Global response normalization as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, overload

import torch
from torch import Tensor, nn

from normkit import functional
from normkit.functional.extras import Fusions, Output
from normkit.layers.base.checks import check_channels, named
from normkit.layers.base.layer import Layer, check_count, check_eps, registered


class GlobalResponseNorm(Layer):
    """Let the channels of a sample compete: each is scaled by its size over all positions, relative to their mean.

    ``y = x + x * n * weight + bias`` with ``n = g / (mean(g) + eps)`` and ``g = sqrt(sum(x ** 2))`` over the positions
    of a channel of a sample; the mean is over its channels. A new layer returns its input. It does not depend on the
    batch.

    Args:
        num_features: number of channels C.
        eps: added to the mean size, in units of the input.
        channels_last: whether the channels are the last dimension and not dimension 1.
        device, dtype: of the parameters; float32 is possible with half-precision input.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``, for (N, C, positions ...) or with `channels_last` (N, positions ..., C): a tensor with the
        input's shape, dtype and memory layout.

    Raises:
        ArgumentError: num_features below 1, eps below 0.
        ShapeError: from ``forward``, naming the layer: fewer than three dimensions, or another number of channels.

    Example:
        >>> import torch, normkit
        >>> layer, x = normkit.GlobalResponseNorm(16), torch.randn(2, 16, 8, 8)
        >>> torch.equal(layer(x), x)
        True

    Source: Woo et al. 2023, arXiv:2301.00808.
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        channels_last: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        check_count(self, "num_features", num_features)
        check_eps(self, eps)
        self._accept(activation=activation)
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.channels_last = channels_last
        self.weight = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight and bias 0, so that the output is the input."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    @overload
    def forward(self, input: Tensor, **fused: Unpack[Fusions]) -> Tensor: ...
    @overload
    def forward(self, input: Tensor, *, return_residual: bool, **fused: Unpack[Fusions]) -> Output: ...
    @named
    def forward(
        self,
        input: Tensor,
        mask: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        residual: Tensor | None = None,
        return_residual: bool = False,
        activation: str | None = None,
    ) -> Output:
        """Normalize; keywords as in `normkit.functional.extras.Extras`, by default the layer's own activation."""
        if input.dim() > 2:
            check_channels(input, input.dim() - 1 if self.channels_last else 1, self.num_features)
        weight, bias = registered(self, "weight"), registered(self, "bias")
        assert weight is not None
        assert bias is not None
        # A layer from transformers has them in shape (1, 1, 1, C).
        return functional.global_response_norm(
            input,
            weight.view(-1),
            bias.view(-1),
            self.eps,
            self.channels_last,
            mask=mask,
            lengths=lengths,
            residual=residual,
            return_residual=return_residual,
            activation=activation or self.activation,
        )

    def extra_repr(self) -> str:
        return self._with_options(f"{self.num_features}, eps={self.eps}, channels_last={self.channels_last}")
