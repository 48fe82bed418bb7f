"""Adaptive layer normalization: scale and shift come from a condition, as in diffusion transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.errors import ShapeError
from normkit.functional.call.checks import check_call
from normkit.layers.base.checks import named
from normkit.layers.base.layer import Layer, check_count, check_eps
from normkit.layers.layer import LayerNorm
from normkit.layers.modulated.base import modulated, one_plus


class AdaptiveLayerNorm(Layer):
    """Normalize the last dimension; a linear layer computes scale and shift from a condition.

    ``y = (x - mean) / sqrt(var + eps) * (1 + scale) + shift`` with ``shift, scale = linear(silu(condition))``; the same
    in training and evaluation. With `gate` the linear layer computes a gate, too, by which a block multiplies the
    output of its branch.

    Args:
        normalized_shape: number of features, the last dimension of the input.
        cond_features: number of features of the condition; None for as many as the input has.
        eps: added to the variance, in units of the input squared.
        gate: whether to return the gate as well.
        zero: whether weight and bias of the linear layer start at 0 (adaLN-Zero): scale, shift and gate are then 0.
        device, dtype: of the parameters.

    Returns:
        From ``forward``, for x (N, ..., C) and a condition (N, cond_features), or one for each token: a tensor with the
        shape, dtype and memory layout of x; with `gate` a pair, that tensor and the gate, which broadcasts to it.

    Raises:
        ArgumentError: a size below 1, eps below 0.
        ShapeError: from ``forward``, naming the layer: an input or a condition of another width, or a condition whose
            samples and tokens are not those of the input.

    Example:
        >>> import torch, normkit
        >>> layer = normkit.AdaptiveLayerNorm(64, 32, gate=True, zero=True)
        >>> y, gate = layer(torch.randn(2, 10, 64), torch.randn(2, 32))
        >>> y.shape, gate.shape, bool(gate.any())
        (torch.Size([2, 10, 64]), torch.Size([2, 1, 64]), False)

    Source: Peebles & Xie 2023, Scalable Diffusion Models with Transformers, arXiv:2212.09748.
    """

    def __init__(
        self,
        normalized_shape: int,
        cond_features: int | None = None,
        eps: float = 1e-6,
        *,
        gate: bool = False,
        zero: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        cond_features = normalized_shape if cond_features is None else cond_features
        check_count(self, "normalized_shape", normalized_shape)
        check_count(self, "cond_features", cond_features)
        check_eps(self, eps)
        self._accept(activation=None)
        super().__init__()
        self.cond_features = cond_features
        self.gate = gate
        self.zero = zero
        self.linear = nn.Linear(cond_features, (2 + gate) * normalized_shape, device=device, dtype=dtype)
        self.norm = LayerNorm(normalized_shape, eps, elementwise_affine=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The linear layer as torch makes it, or 0."""
        self.linear.reset_parameters()
        if self.zero:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    @named
    def forward(self, x: Tensor, condition: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Normalize, scale and shift."""
        check_call("the layer", x, 0.0)
        check_condition(x, condition, self.cond_features)
        between = x.dim() - condition.dim()
        condition = condition.to(self.linear.weight.dtype)  # as in other layers, parameters may be wider than the input
        made = self.linear(F.silu(condition)).unflatten(-1, (*[1] * between, -1))
        shift, scale, *gate = made.chunk(2 + self.gate, dim=-1)
        y = modulated(self.norm, x, one_plus(scale, x), shift)
        return (y, gate[0]) if gate else y

    def extra_repr(self) -> str:
        return f"cond_features={self.cond_features}, gate={self.gate}, zero={self.zero}"


def check_condition(x: Tensor, condition: Tensor, width: int) -> None:
    """A condition has the layer's width, and dimensions before it that broadcast to the first ones of the input.

    Raises:
        ShapeError: it does not.
    """
    *given, features = condition.shape if condition.dim() else (0,)
    fits = len(given) < x.dim() and all(size in (1, own) for size, own in zip(given, x.shape, strict=False))
    if features != width or not given or not fits:
        raise ShapeError(
            f"the condition must be (N, {width}), or have such a row for each token, for an input of shape "
            f"{tuple(x.shape)}, got shape {tuple(condition.shape)}: give cond_features= its width, and as many rows"
        )
