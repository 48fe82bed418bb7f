"""Batch normalization: one channel over the whole batch, with running statistics for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, ClassVar, Unpack, overload

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.modules import batchnorm

from normkit import functional
from normkit.functional.batch.update import skipped_channels
from normkit.functional.call.recompute import count, is_recomputing
from normkit.functional.call.running import skipped_channels as skipped_so_far
from normkit.functional.call.running import store
from normkit.functional.call.spec import Fused
from normkit.functional.extras import Epilogues, Extras, Output
from normkit.layers.base.checks import check_channels, check_rank, named
from normkit.layers.base.layer import Layer, check_count, check_eps, registered
from normkit.layers.base.tracked import share_of
from normkit.layers.base.versions import TakesBias, initialize_parameters, make


def check_input(layer: Any, input: Tensor) -> None:
    """A layer with the names of batch norm gets an input of the dimensions and channels it was made for."""
    check_rank(input, layer.layouts)
    check_channels(input, 1, layer.num_features)


def evaluated(layer: batchnorm._BatchNorm, input: Tensor, **extras: Unpack[Extras]) -> Output:
    """The result with the running statistics."""
    running = layer.running_mean, layer.running_var
    y: Output = functional.batch_norm(input, *running, layer.weight, layer.bias, False, 0.0, layer.eps, **extras)
    return y


def keep_statistics(
    layer: batchnorm._BatchNorm, input: Tensor, counter: Tensor | None, new: tuple[Tensor, Tensor] | None
) -> None:
    """Store what a pure function has returned; an empty batch updates nothing, a recomputed step is not counted."""
    if counter is None or is_recomputing():
        return
    with torch.no_grad():
        if new is not None and input.numel():
            for statistic, value in zip((layer.running_mean, layer.running_var), new, strict=True):
                assert statistic is not None
                store(statistic, value)
        count(counter)


class _BatchNorm(Layer, TakesBias, batchnorm._BatchNorm):
    """Abstract: state and signature are torch's, so that ``isinstance`` and state dicts agree; forward is ours."""

    layouts: ClassVar[dict[int, str]]
    # Not a buffer: averages of models pair buffers by their order, and must always find the same ones.
    _batches_skipped: Tensor | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
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
            batchnorm._BatchNorm,
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
        check_channels(input, 1, self.num_features)
        counter, momentum = share_of(self)
        mean, var = registered(self, "running_mean"), registered(self, "running_var")
        own = self.training or (mean is None and var is None)
        if self.training and not self.track_running_stats:
            mean = var = None
        before = 0 if counter is None or is_compiling() else skipped_so_far()
        y = functional.batch_norm(
            input,
            mean,
            var,
            registered(self, "weight"),
            registered(self, "bias"),
            own,
            momentum,
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
        if counter is not None and not is_compiling() and skipped_so_far() != before:
            self._count_skipped(input, momentum, (mask, lengths, residual, False, None))
        # Counted after the call, for a refused input changes no state; an empty batch counts, as torch has it.
        if counter is not None:
            count(counter)
        return y

    @property
    def num_batches_skipped(self) -> Tensor | None:
        """How often each channel kept its statistics because the new ones were not finite; None if none ever did."""
        return self._batches_skipped

    def _count_skipped(self, input: Tensor, momentum: float, fused: Fused) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        with torch.no_grad():
            running = self.running_mean, self.running_var
            skipped = skipped_channels(input, *running, momentum, self.eps, fused)
            before = self._batches_skipped
            self._batches_skipped = skipped.long() if before is None else skipped + before.to(skipped.device)


@named
def _initialise(layer: batchnorm._LazyNormBase, input: Tensor) -> None:
    """Check before the channels are counted: a wrong input must not decide the layer's size."""
    layer._check_input_dim(input)
    initialize_parameters(layer, input)
    count_channels(layer, input.shape[1])


def count_channels(layer: batchnorm._LazyNormBase, given: int) -> None:
    """Give a lazy layer its number of channels where parameters have come from a state dict; else the input's."""
    if not layer.num_features:
        own = next(chain(layer.parameters(), layer.buffers()), None)
        layer.num_features = given if own is None else own.numel()


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """Normalize each feature of (N, C), or each channel of (N, C, L), over the batch.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``. In training mean and variance are the batch's and update the
    running statistics: ``running = (1 - momentum) * running + momentum * batch``, with the unbiased variance. In
    evaluation the running statistics take their place. An empty batch is counted, and updates no statistics; a step
    that activation checkpointing computes again does neither. A channel keeps its statistics where the new ones would
    not be finite in their dtype; ``num_batches_skipped``, None until then, counts how often each did, in eager
    execution on a CPU.

    Args:
        num_features: number of channels C.
        eps: added to the variance, in units of the input squared.
        momentum: share of the new batch in the running statistics; None for the average over all batches.
        affine: whether there are weight and bias.
        track_running_stats: whether there are running statistics; without them the batch's are always used.
        device, dtype: of parameters and statistics.
        bias: whether there is a bias as well as a weight.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``: a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: num_features below 1, eps below 0.
        ShapeError: from ``forward``, naming the layer: a wrong number of dimensions or channels, or a single
            value per channel in training. The statistics are unchanged then.

    Example:
        >>> import torch, normkit
        >>> layer = normkit.BatchNorm1d(3)
        >>> layer(torch.randn(8, 3)).shape, layer.num_batches_tracked
        (torch.Size([8, 3]), tensor(1))

    Source: Ioffe & Szegedy 2015, arXiv:1502.03167.
    """

    layouts: ClassVar = {2: "(N, C)", 3: "(N, C, L)"}


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """Normalize each channel of (N, C, H, W) over batch and positions; otherwise as `BatchNorm1d`."""

    layouts: ClassVar = {4: "(N, C, H, W)"}


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """Normalize each channel of (N, C, D, H, W) over batch and positions; otherwise as `BatchNorm1d`."""

    layouts: ClassVar = {5: "(N, C, D, H, W)"}


class _LazyBatchNorm(_BatchNorm):
    """Abstract: the channels are those of the first input."""

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
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


class LazyBatchNorm1d(_LazyBatchNorm, nn.LazyBatchNorm1d):
    """A `BatchNorm1d` that takes the number of channels from its first input."""

    layouts: ClassVar = BatchNorm1d.layouts
    cls_to_become = BatchNorm1d
    initialize_parameters = _initialise


class LazyBatchNorm2d(_LazyBatchNorm, nn.LazyBatchNorm2d):
    """A `BatchNorm2d` that takes the number of channels from its first input."""

    layouts: ClassVar = BatchNorm2d.layouts
    cls_to_become = BatchNorm2d
    initialize_parameters = _initialise


class LazyBatchNorm3d(_LazyBatchNorm, nn.LazyBatchNorm3d):
    """A `BatchNorm3d` that takes the number of channels from its first input."""

    layouts: ClassVar = BatchNorm3d.layouts
    cls_to_become = BatchNorm3d
    initialize_parameters = _initialise
