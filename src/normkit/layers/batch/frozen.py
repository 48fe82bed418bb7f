"""Frozen batch normalization: statistics, weight and bias are constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self, Unpack, overload

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm, instancenorm

from normkit import functional
from normkit.errors import ArgumentError
from normkit.functional.extras import Fusions, Output
from normkit.layers.base.checks import check_channels, check_rank, named
from normkit.layers.base.layer import Layer, check_count, check_eps, registered


class _FrozenBatchNorm(Layer):
    """Abstract: buffers under the names that batch norm has in a state dict."""

    layouts: ClassVar[dict[int, str]]
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        check_count(self, "num_features", num_features)
        check_eps(self, eps)
        self._accept(activation=activation)
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.affine = affine
        self.register_buffer("weight", torch.ones(num_features, device=device, dtype=dtype) if affine else None)
        zeros = torch.zeros(num_features, device=device, dtype=dtype)
        self.register_buffer("bias", zeros if affine and bias else None)
        self.register_buffer("running_mean", torch.zeros_like(zeros))
        self.register_buffer("running_var", torch.ones_like(zeros))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long, device=device))

    @classmethod
    def from_batch_norm(cls, layer: nn.Module) -> Self:
        """A frozen copy of a batch norm, which itself is left as it is.

        Args:
            layer: of torch.nn or normkit, with running statistics; not a subclass whose forward does more.

        Returns:
            A layer that gives what `layer` gives in evaluation.

        Raises:
            ArgumentError: a layer of another kind, one whose class defines its own forward (timm's `BatchNormAct2d`
                applies an activation), or one without running statistics or not yet sized.
        """
        if not isinstance(layer, batchnorm._NormBase) or isinstance(layer, instancenorm._InstanceNorm):
            raise ArgumentError(f"{cls.__name__} is made of a batch norm, got {type(layer).__name__}: give the norm")
        forward = vars(layer).get("forward", type(layer).forward)
        if not str(getattr(forward, "__module__", "")).startswith(("torch.nn.modules.", "normkit.layers.")):
            parts = f" with {' and '.join(layer._modules)}" if layer._modules else ""
            raise ArgumentError(
                f"{cls.__name__} is made of a batch norm as it is in torch.nn or normkit, got {type(layer).__name__}"
                f"{parts}, whose forward may do more than its numbers say: call normkit.freeze, which keeps the layer"
            )
        if layer.running_mean is None or isinstance(layer.running_mean, nn.UninitializedBuffer):
            raise ArgumentError(
                f"{cls.__name__} needs running statistics, got none from {type(layer).__name__}: "
                "freeze a layer made with track_running_stats=True, after its first batch if it is lazy"
            )
        mean = layer.running_mean
        affine, bias = layer.weight is not None, layer.bias is not None
        activation = getattr(layer, "activation", None)
        frozen = cls(layer.num_features, layer.eps, affine, mean.device, mean.dtype, bias=bias, activation=activation)
        with torch.no_grad():
            for key, buffer in frozen.named_buffers():
                setattr(frozen, key, getattr(layer, key).detach().clone().to(buffer.device))
        return frozen.train(layer.training)

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
        """Normalize with the constants, in either mode; keywords as in `normkit.functional.extras.Extras`."""
        check_rank(input, self.layouts)
        check_channels(input, 1, self.num_features)
        return functional.batch_norm(
            input,
            registered(self, "running_mean"),
            registered(self, "running_var"),
            registered(self, "weight"),
            registered(self, "bias"),
            False,
            0.0,
            self.eps,
            mask=mask,
            lengths=lengths,
            residual=residual,
            return_residual=return_residual,
            activation=activation or self.activation,
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Frozen layers elsewhere have no counter, and nothing here depends on it; one on meta would stay there.
        own = self.num_batches_tracked
        state_dict.setdefault(
            prefix + "num_batches_tracked", torch.zeros_like(own, device="cpu") if own.is_meta else own
        )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return self._with_options(f"{self.num_features}, eps={self.eps}, affine={self.affine}")


class FrozenBatchNorm1d(_FrozenBatchNorm):
    """Batch norm of (N, C) or (N, C, L) as in evaluation, in either mode, with nothing to train.

    ``y = (x - running_mean) / sqrt(running_var + eps) * weight + bias``, all four buffers under batch norm's names, so
    that state dicts go both ways. No optimizer, weight decay or moving average sees them, and ``train()`` changes
    nothing. The gradient of the input is exact, of any order.

    Args:
        num_features: number of channels C.
        eps: added to the variance, in units of the input squared.
        affine: whether there are weight and bias.
        device, dtype: of the buffers.
        bias: whether there is a bias as well as a weight.
        activation: applied last, by name: `normkit.functional.extras.Extras`; None for none.

    Returns:
        From ``forward``: a tensor with the input's shape, dtype and memory layout.

    Raises:
        ArgumentError: num_features below 1, eps below 0.
        ShapeError: from ``forward``, naming the layer: a wrong number of dimensions or channels.

    Example:
        >>> import torch, normkit
        >>> layer = torch.nn.BatchNorm1d(3).eval()
        >>> x = torch.randn(8, 3)
        >>> torch.allclose(normkit.FrozenBatchNorm1d.from_batch_norm(layer)(x), layer(x))
        True

    Source: Girshick et al. 2018, Detectron, AffineChannel.
    """

    layouts: ClassVar = {2: "(N, C)", 3: "(N, C, L)"}


class FrozenBatchNorm2d(_FrozenBatchNorm):
    """Batch norm of (N, C, H, W) with constant statistics, weight and bias; otherwise as `FrozenBatchNorm1d`."""

    layouts: ClassVar = {4: "(N, C, H, W)"}


class FrozenBatchNorm3d(_FrozenBatchNorm):
    """Batch norm of (N, C, D, H, W) with constant statistics, weight and bias; otherwise as `FrozenBatchNorm1d`."""

    layouts: ClassVar = {5: "(N, C, D, H, W)"}
