"""Reversible instance normalization as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from normkit import functional
from normkit.errors import ArgumentError, StateError, nearest
from normkit.functional.call.recompute import is_recomputing
from normkit.functional.revin import WindowStatistics
from normkit.layers.base.checks import check_channels, named
from normkit.layers.base.layer import check_count, check_eps, registered


class RevIN(nn.Module):
    """Normalize each series of a window (N, T, C) over time, and take a forecast back to the window's scale.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` in ``forward``, and in ``inverse`` the reverse with the
    statistics of the last ``forward``. A constant series comes back exactly. The statistics belong to one
    call: they are in no state dict, and copies of the layer have none.

    Args:
        num_features: number of series C.
        eps: added to the variance, in units of the input squared; a weight nearer to 0 counts as eps in ``inverse``.
        affine: whether there are weight and bias, one value for each series.
        device, dtype: of the parameters; float32 is possible with half-precision input.

    Returns:
        From ``forward`` and ``inverse``: a tensor with the input's shape and dtype.

    Raises:
        ArgumentError: num_features below 1, eps below 0; from ``forward``, an unknown mode.
        ShapeError: from ``forward``, naming the layer: fewer than three dimensions, or another number of series.
        StateError: from ``inverse``: no call of ``forward`` before.

    Example:
        >>> import torch, normkit
        >>> layer = normkit.RevIN(3)
        >>> window = torch.randn(8, 96, 3) * 5 + 100
        >>> forecast = layer(window)[:, -24:]  # a model in place of this
        >>> torch.allclose(layer.inverse(forecast), window[:, -24:], rtol=1e-4)
        True

    Source: Kim et al. 2022, Reversible Instance Normalization for Accurate Time-Series Forecasting against
    Distribution Shift, ICLR.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    _last: WindowStatistics | None = None
    _again: WindowStatistics | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count(self, "num_features", num_features)
        check_eps(self, eps)
        self.num_features = num_features
        self.eps = eps
        self.affine = affine
        for name in ("weight", "bias"):
            new = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) if affine else None
            self.register_parameter(name, new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        for name, own in self.named_parameters():
            nn.init.constant_(own, float(name == "weight"))

    @named
    def forward(
        self,
        input: Tensor,
        mode: Literal["norm", "denorm"] = "norm",
        mask: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """Normalize and keep the statistics for ``inverse``; with ``mode="denorm"`` this is ``inverse``.

        `mask` is boolean, True at valid times, (N, T); or `lengths` has the number of valid times of each window.
        """
        if mode not in ("norm", "denorm"):
            raise ArgumentError(
                f"mode of RevIN must be 'norm' or 'denorm', got {mode!r}: {nearest(str(mode), ('norm', 'denorm'))}"
            )
        if input.dim() > 2:  # the function refuses fewer dimensions
            check_channels(input, -1, self.num_features)
        weight, bias = registered(self, "weight"), registered(self, "bias")
        if mode == "norm":
            y, statistics = functional.revin(input, weight, bias, self.eps, mask=mask, lengths=lengths)
            # A checkpoint computes an earlier window again, for an inverse inside of the checkpoint if there is one.
            self._last, self._again = (self._last, statistics) if is_recomputing() else (statistics, None)
            return y
        if mask is not None or lengths is not None:
            raise ArgumentError(
                "RevIN takes mask or lengths with mode='norm' alone, got them with 'denorm': the statistics are known"
            )
        last = self._again if is_recomputing() and self._again is not None else self._last
        if last is None:
            raise StateError(
                "RevIN takes back what it has normalized, got no window yet: call the layer on the input first"
            )
        return functional.revin_inverse(input, last, weight, bias, self.eps)

    def inverse(self, input: Tensor) -> Tensor:
        """Take (N, T', C) back to the scale of the last window that ``forward`` normalized."""
        return self.forward(input, "denorm")

    def __getstate__(self) -> dict[str, Any]:
        # Statistics of a call may have a graph, which can be neither copied nor pickled.
        return {name: value for name, value in vars(self).items() if name not in ("_last", "_again")}

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"
