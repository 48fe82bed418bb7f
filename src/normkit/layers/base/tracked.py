"""The base of layers that keep running statistics, but others than batch norm's, or with another use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from normkit.functional.call.recompute import count
from normkit.kernels.devices import is_on_gpu
from normkit.layers.base.checks import check_channels, check_rank
from normkit.layers.base.layer import Layer, check_count, check_eps, registered


def share_of(layer: Any) -> tuple[Tensor | None, float]:
    """The counter that a step of this layer updates, if any, and the share of the batch in the running statistics."""
    counter = registered(layer, "num_batches_tracked") if layer.training and layer.track_running_stats else None
    momentum: Any = layer.momentum
    if momentum is None and counter is not None and is_compiling() and is_on_gpu(counter):
        momentum = 1.0 / (counter.double() + 1.0)  # stays on the GPU, so that the graph does not wait for it
    elif momentum is None:
        momentum = 0.0 if counter is None else 1.0 / (float(counter) + 1.0)
    return counter, momentum


class Tracked(Layer):
    """Abstract: weight, bias, and running statistics with other names or another use than batch norm's.

    It is no subclass of torch's batch norm, for which tools would take it: its evaluation is another one.
    """

    layouts: ClassVar[dict[int, str] | None] = None
    track_running_stats: ClassVar[bool] = True
    num_batches_tracked: Tensor
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def _make(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        activation: str | None,
        statistics: Mapping[str, tuple[int, ...]],
    ) -> None:
        """Check and keep the arguments, and make parameters and buffers without values; `statistics` has the shapes.

        Raises:
            ArgumentError: num_features below 1, eps below 0, an unknown activation.
        """
        check_count(self, "num_features", num_features)
        check_eps(self, eps)
        self._accept(activation=activation)
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        for name, there in {"weight": affine, "bias": affine and bias}.items():
            new = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) if there else None
            self.register_parameter(name, new)
        for name, shape in statistics.items():
            self.register_buffer(name, torch.empty(shape, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long, device=device))

    def reset_running_stats(self) -> None:
        """Statistics as before the first batch."""
        self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, statistics as before the first batch."""
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _check(self, input: Tensor) -> None:
        if self.layouts is not None:
            check_rank(input, self.layouts)
        if input.dim() > 1:  # the function refuses fewer dimensions, and says which it needs
            check_channels(input, 1, self.num_features)

    def _count(self, counter: Tensor | None, input: Tensor) -> None:
        """Count a batch that had samples, after the call: a refused input changes no state."""
        if counter is not None and input.numel():
            with torch.no_grad():
                count(counter)

    def _described(self, more: str = "") -> str:
        return self._with_options(
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}{more}"
        )
