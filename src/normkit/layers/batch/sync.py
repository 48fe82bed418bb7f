"""Batch normalization over all processes, and models taken there and back."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar, Unpack, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules import batchnorm

from normkit import functional
from normkit.functional.batch.sync import sync_batch_norm, world_size
from normkit.functional.call.recompute import count
from normkit.functional.extras import Extras, Fusions, Output
from normkit.layers.base.checks import check_channels, check_rank, named
from normkit.layers.base.layer import Layer, check_count, check_eps
from normkit.layers.base.tracked import share_of
from normkit.layers.base.versions import TakesBias, make
from normkit.layers.batch.norm import BatchNorm1d, BatchNorm2d, BatchNorm3d

M = TypeVar("M", bound=nn.Module)

_LAYOUTS: dict[type[nn.Module], dict[int, str]] = {
    kind: ours.layouts
    for theirs, ours in ((nn.BatchNorm1d, BatchNorm1d), (nn.BatchNorm2d, BatchNorm2d), (nn.BatchNorm3d, BatchNorm3d))
    for kind in (theirs, ours)
}
"""The layers that are converted, and the inputs that each takes before and after."""


def _synchronized(kind: type[nn.Module]) -> type[SyncBatchNorm] | None:
    """The class that replaces a class; None for a subclass that does not name one, because it may do more."""
    return SyncBatchNorm if kind in _LAYOUTS else vars(kind).get("synchronized")


def _is_plain(module: nn.Module) -> bool:
    """Whether it is a `SyncBatchNorm` and no subclass, other than one that `convert` makes."""
    kind = type(module)
    return kind is SyncBatchNorm or (
        isinstance(module, SyncBatchNorm) and module.origin is not None and kind is _synchronized(module.origin)
    )


# Not a torch.nn.SyncBatchNorm, which DistributedDataParallel refuses on a CPU.
class SyncBatchNorm(Layer, TakesBias, batchnorm._BatchNorm):
    """Normalize each channel of (N, C, ...) over the batches of all processes taken together.

    As one process with the whole batch computes it, however the batch is divided: processes may hold different numbers
    of samples, none, or images of other sizes. It works on every backend of ``torch.distributed``, gloo on the CPU
    included, with one collective forward and one backward. Without a process group, with a single process and
    in evaluation it is batch norm. Gradients of weight and bias are each process's share, as data-parallel
    training expects them.

    Every process has to take part in every step: call it with an empty batch, shape (0, C, ...), where there is nothing
    to do.

    Args:
        num_features: number of channels C.
        eps: added to the variance, in units of the input squared.
        momentum: share of the new batch in the running statistics; None for the average over all batches.
        affine: whether there are weight and bias.
        track_running_stats: whether there are running statistics.
        process_group: the processes that share a batch; None for all.
        device, dtype: of parameters and statistics.
        bias: whether there is a bias as well as a weight.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``: a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: num_features below 1, eps below 0, an unknown activation.
        ShapeError: from ``forward``: a wrong number of dimensions or channels, or a single value per channel in the
            whole group.
        StateError: where a gradient over several processes is differentiated again.

    Example:
        >>> import torch, normkit
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> normkit.SyncBatchNorm.convert(model)[1]
        SyncBatchNorm(8, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
        >>> type(normkit.SyncBatchNorm.revert(model)[1]).__name__
        'BatchNorm2d'

    Source: Peng et al. 2018, arXiv:1711.07240, for the method; `normkit.functional.sync` for the sums.
    """

    process_group: dist.ProcessGroup | None = None
    # What `convert` made it from, and `revert` makes of it again.
    origin: type[batchnorm._BatchNorm] | None = None
    added: ClassVar = ("process_group", "origin")

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        check_count(self, "num_features", num_features)
        check_eps(self, eps)
        self._accept(activation=activation)
        base = batchnorm._BatchNorm
        make(self, base, num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if self.origin is not None:
            check_rank(
                input, vars(self).get("layouts") or getattr(self.origin, "layouts", None) or _LAYOUTS[self.origin]
            )
        elif input.dim() < 2:
            check_rank(input, {2: "(N, C)", 3: "(N, C, ...)"})

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
        """Normalize; training updates the running statistics; keywords as in `normkit.functional.extras.Extras`."""
        self._check_input_dim(input)
        check_channels(input, 1, self.num_features)
        across = self.training and world_size(self.process_group) > 1
        return (self._across if across else self._alone)(
            input,
            mask=mask,
            lengths=lengths,
            residual=residual,
            return_residual=return_residual,
            activation=activation or self.activation,
        )

    def _across(self, input: Tensor, **extras: Unpack[Extras]) -> Output:
        counter, momentum = share_of(self)
        running = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        group = self.process_group
        y: Output = sync_batch_norm(input, *running, self.weight, self.bias, momentum, self.eps, group, **extras)
        if counter is not None:
            count(counter)
        return y

    def _alone(self, input: Tensor, **extras: Unpack[Extras]) -> Output:
        counter, momentum = share_of(self)
        own = self.training or (self.running_mean is None and self.running_var is None)
        keep = self.track_running_stats or not self.training
        running = (self.running_mean, self.running_var) if keep else (None, None)
        y: Output = functional.batch_norm(input, *running, self.weight, self.bias, own, momentum, self.eps, **extras)
        if counter is not None:
            count(counter)
        return y

    @staticmethod
    def convert(model: M, process_group: dist.ProcessGroup | None = None) -> M:
        """Let every batch norm of a model normalize over all processes; `revert` takes it back.

        In place, and each layer stays the same object, with its parameters, statistics, hooks, mode and name in the
        state dict; a layer that is used in several places still is.

        Args:
            model: any module, a batch norm itself included.
            process_group: the processes that share a batch; None for all.

        Returns:
            The model.

        Warns:
            UserWarning: naming the subclasses of batch norm that were left alone, because they may do more.

        Example:
            >>> import torch, normkit
            >>> layer = torch.nn.BatchNorm1d(3)
            >>> normkit.SyncBatchNorm.convert(layer) is layer
            True
        """
        left: dict[str, str] = {}
        for name, module in model.named_modules():
            kind = type(module)
            new = _synchronized(kind)
            if new is not None:
                layer: Any = module
                # As torch's lazy layers become others: nothing can be forgotten that is never copied.
                layer.__class__ = new
                layer.origin, layer.process_group = kind, process_group
            elif isinstance(module, batchnorm._BatchNorm) and not _is_plain(module):
                left[name or "the model itself"] = kind.__name__
        if left:
            named = ", ".join(f"{name} ({kind})" for name, kind in left.items())
            warnings.warn(
                f"SyncBatchNorm.convert takes batch norms as they are in torch.nn and normkit, and left alone, because "
                f"a subclass may do more: {named}. These use each process's own batch: exchange them by hand",
                stacklevel=2,
            )
        return model

    @staticmethod
    def revert(model: M) -> M:
        """Make of every layer that `convert` has changed what it was before, in place.

        Args:
            model: any module.

        Returns:
            The model.

        Warns:
            UserWarning: naming the layers that were made as SyncBatchNorm, which stay so.

        Example:
            >>> import torch, normkit
            >>> layer = normkit.SyncBatchNorm.convert(torch.nn.BatchNorm1d(3))
            >>> normkit.SyncBatchNorm.revert(layer)
            BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
        """
        left: list[str] = []
        for name, module in model.named_modules():
            if not isinstance(module, SyncBatchNorm):
                continue
            changed = not _is_plain(module)
            if module.origin is None or changed:
                left.append((name or "the model itself") + changed * " (its class changed since, as by freeze)")
                continue
            layer: Any = module
            layer.__class__ = layer.origin
            for extra in SyncBatchNorm.added:
                del layer.__dict__[extra]
        if left:
            warnings.warn(
                f"SyncBatchNorm.revert knows what convert has changed, and left alone what was made as SyncBatchNorm: "
                f"{', '.join(left)}. Without a process group these are batch norm anyway",
                stacklevel=2,
            )
        return model
