"""Filter response normalization as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack, overload

import torch
from torch import Tensor, nn

from normkit import functional
from normkit.functional.extras import Fusions, Output
from normkit.layers.base.checks import check_channels, check_rank, named
from normkit.layers.base.layer import Layer, check_count, check_eps, registered

LAYOUTS = {4: "(N, C, H, W)"}


class FilterResponseNorm2d(Layer):
    """Divide each channel of each image by the root mean square of its positions, then apply a learned threshold.

    ``y = max(x / sqrt(mean(x ** 2) + eps) * weight + bias, threshold)``, the mean over height and width. It does not
    depend on the batch; the maximum, the thresholded linear unit, takes the place of the activation.

    Args:
        num_features: number of channels C.
        eps: added to the mean square, in units of the input squared.
        affine: whether there are weight and bias, of shape (C,).
        threshold: whether there is the maximum, with a learned threshold of shape (C,).
        device, dtype: of the parameters; float32 is possible with half-precision input.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``, for (N, C, H, W): a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: num_features below 1, eps below 0.
        ShapeError: from ``forward``, naming the layer: a single position, or another rank or number of channels.

    Example:
        >>> import torch, normkit
        >>> y = normkit.FilterResponseNorm2d(16)(torch.randn(2, 16, 8, 8))
        >>> y.shape, bool(y.min() >= 0)
        (torch.Size([2, 16, 8, 8]), True)

    Source: Singh & Krishnan 2020, arXiv:1911.09737.
    """

    threshold_name: ClassVar[str] = "threshold"
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        affine: bool = True,
        threshold: bool = True,
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
        for name, there in {"weight": affine, "bias": affine, self.threshold_name: threshold}.items():
            new = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) if there else None
            self.register_parameter(name, new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias and threshold 0."""
        for name, own in self.named_parameters():
            nn.init.constant_(own, float(name == "weight"))

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
        check_rank(input, LAYOUTS)
        check_channels(input, 1, self.num_features)
        return functional.filter_response_norm(
            input,
            registered(self, "weight"),
            registered(self, "bias"),
            registered(self, self.threshold_name),
            self.eps,
            mask=mask,
            lengths=lengths,
            residual=residual,
            return_residual=return_residual,
            activation=activation or self.activation,
        )

    def extra_repr(self) -> str:
        affine, threshold = self.weight is not None, registered(self, self.threshold_name) is not None
        return self._with_options(f"{self.num_features}, eps={self.eps}, affine={affine}, threshold={threshold}")
