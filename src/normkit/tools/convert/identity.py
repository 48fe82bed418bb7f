"""What is left where a norm is removed: nothing, its activation, or a constant gain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normkit import catalog
from normkit.tools.model import own
from normkit.tools.model.activated import WithActivation, module_of
from normkit.tools.model.info import NormInfo
from normkit.tools.model.refusal import RefusedError

IDENTITY = "identity"
"""The name in `convert` for no norm at all."""


class Gain(WithActivation, nn.Identity):
    """``y = x * gain``, one constant for all channels, then ``drop`` and ``act``.

    Args:
        gain: keeps the size that activations had after a norm, so that the layers after it find their inputs as before.

    Returns:
        From ``forward``: a tensor with the input's shape and dtype.

    Example:
        >>> Gain(2.0)(torch.ones(3))
        tensor([2., 2., 2.])
    """

    fuses = False
    gain: Tensor

    def __init__(self, gain: float = 1.0, device: torch.device | None = None) -> None:
        super().__init__()
        self.register_buffer("gain", torch.tensor(gain, device=device))

    def forward(self, input: Tensor) -> Tensor:
        """Multiply."""
        y: Tensor = super().forward(input * self.gain.to(input.dtype))
        return y

    def extra_repr(self) -> str:
        return f"{float(self.gain):.4g}"


def without_norm(module: nn.Module, info: NormInfo, *, with_gain: bool) -> nn.Module:
    """What takes the place of a norm that is removed.

    Args:
        module, info: the norm.
        with_gain: whether to make a `Gain`, whose number is fitted later.

    Raises:
        RefusedError: it is not understood, or it does more than normalize.
    """
    if info.kind is None:
        raise RefusedError(info.reason)
    if info.kind in own.KINDS and not catalog.find(info.kind).replaces_norms and info.pattern is None:
        raise RefusedError(f"{info.kind} does more than normalize, which would be lost")
    children = {name: module._modules[name] for name in info.extras}
    if info.activation:
        children["act"] = module_of(info.activation)
    if not with_gain and not children:
        return nn.Identity()
    # With a gain of 1 too: an activation in place must not change the input itself, which others may read.
    like = next((tensor for tensor in (*module.parameters(), *module.buffers())), None)
    layer = Gain(device=None if like is None else like.device)
    for name, child in children.items():
        layer.add_module(name, child)
    return layer
