"""Instance normalization: each channel of each sample alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import ClassVar, Unpack, cast, overload

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm, instancenorm

from normkit import functional
from normkit.functional.extras import Epilogues, Output
from normkit.layers.base.checks import check_channels, check_rank, has_channels, named
from normkit.layers.base.layer import Layer, check_count, check_eps, registered
from normkit.layers.base.versions import TakesBias, initialize_parameters, make
from normkit.layers.batch.norm import count_channels


class _InstanceNorm(Layer, TakesBias, instancenorm._InstanceNorm):
    """Abstract: state and signature are torch's, so that ``isinstance`` and state dicts agree; forward is ours."""

    layouts: ClassVar[dict[int, str]]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        check_count(self, "num_features", num_features)
        check_eps(self, eps)
        self._accept(activation=activation)
        make(
            self,
            instancenorm._InstanceNorm,
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            device,
            dtype,
            bias=bias,
        )

    def _check_input_dim(self, input: Tensor) -> None:
        check_rank(input, self.layouts)

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
        """Normalize; training updates the running statistics; keywords as in `normkit.functional.extras`."""
        self._check_input_dim(input)
        dim = input.dim() - min(self.layouts)
        if self.affine or self.track_running_stats:
            check_channels(input, dim, self.num_features)
        elif not has_channels(input, dim, self.num_features):
            warnings.warn(
                f"{self} got {input.shape[dim]} channels; without parameters and statistics that changes nothing, "
                f"but num_features={self.num_features} is untrue",
                stacklevel=2,
            )
        if not dim:
            mask, residual, gate, skip = (
                t.unsqueeze(0) if isinstance(t, Tensor) else t for t in (mask, residual, gate, skip)
            )
        y = functional.instance_norm(
            input if dim else input.unsqueeze(0),
            registered(self, "running_mean"),
            registered(self, "running_var"),
            registered(self, "weight"),
            registered(self, "bias"),
            self.training or not self.track_running_stats,
            self.momentum if self.momentum is not None else 0.0,
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
        if dim:
            return y
        return y.squeeze(0) if isinstance(y, Tensor) else (y[0].squeeze(0), y[1].squeeze(0))


@named
def _initialise(layer: batchnorm._LazyNormBase, input: Tensor) -> None:
    """Check before the channels are counted, and count them where they are: first if there is no batch."""
    layer._check_input_dim(input)
    batched = input if input.dim() > min(cast(_InstanceNorm, layer).layouts) else input.unsqueeze(0)
    initialize_parameters(layer, batched)
    count_channels(layer, batched.shape[1])


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """Normalize each channel of each sample of (N, C, L) or (C, L) over its positions.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``. Running statistics are kept only on request and
    used in evaluation then: the average over the batch of the samples' means and unbiased variances.

    Args:
        num_features: number of channels C.
        eps: added to the variance, in units of the input squared.
        momentum: share of the new batch in the running statistics; None leaves them as they are.
        affine: whether there are weight and bias.
        track_running_stats: whether there are running statistics, used in evaluation.
        device, dtype: of parameters and statistics.
        bias: whether there is a bias as well as a weight.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``: a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: num_features below 1, eps below 0.
        ShapeError: from ``forward``, naming the layer: a wrong number of dimensions or channels, or a single
            position, however large the batch.

    Example:
        >>> import torch, normkit
        >>> y = normkit.InstanceNorm1d(3)(torch.randn(8, 3, 10) * 5 + 7)
        >>> bool(y.mean(-1).abs().max() < 1e-5)
        True

    Source: Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022.
    """

    layouts: ClassVar = {2: "(C, L)", 3: "(N, C, L)"}


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """Normalize each channel of each sample of (N, C, H, W) or (C, H, W); otherwise as `InstanceNorm1d`."""

    layouts: ClassVar = {3: "(C, H, W)", 4: "(N, C, H, W)"}


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """Normalize each channel of each sample of (N, C, D, H, W) or (C, D, H, W); otherwise as `InstanceNorm1d`."""

    layouts: ClassVar = {4: "(C, D, H, W)", 5: "(N, C, D, H, W)"}


class _LazyInstanceNorm(_InstanceNorm):
    """Abstract: the channels are those of the first input."""

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        check_eps(self, eps)
        self._accept(activation=activation)
        make(self, batchnorm._LazyNormBase, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)


class LazyInstanceNorm1d(_LazyInstanceNorm, nn.LazyInstanceNorm1d):
    """An `InstanceNorm1d` that takes the number of channels from its first input."""

    layouts: ClassVar = InstanceNorm1d.layouts
    cls_to_become = InstanceNorm1d
    initialize_parameters = _initialise


class LazyInstanceNorm2d(_LazyInstanceNorm, nn.LazyInstanceNorm2d):
    """An `InstanceNorm2d` that takes the number of channels from its first input."""

    layouts: ClassVar = InstanceNorm2d.layouts
    cls_to_become = InstanceNorm2d
    initialize_parameters = _initialise


class LazyInstanceNorm3d(_LazyInstanceNorm, nn.LazyInstanceNorm3d):
    """An `InstanceNorm3d` that takes the number of channels from its first input."""

    layouts: ClassVar = InstanceNorm3d.layouts
    cls_to_become = InstanceNorm3d
    initialize_parameters = _initialise
