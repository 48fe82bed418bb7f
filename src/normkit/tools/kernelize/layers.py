"""What the ``kernels`` package puts on a norm: a layer with nothing but a forward, which reads the norm's own state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from normkit import functional
from normkit.functional.call.precision import Cast
from normkit.tools.model.info import Gate


@dataclass(frozen=True)
class PureLayer:
    """One way to compute a norm; for the ``kernels`` package, a repository that loads it.

    Attributes:
        kind: ``"rms_norm"`` or ``"layer_norm"``.
        eps: the attribute of the norm that has its eps; or the eps itself, if its code has it as a number.
        cast, zero_centered: as in `normkit.functional.rms_norm`.
        gate: how it uses a gate; None if it takes one input.
    """

    kind: str
    eps: str | float | None
    cast: Cast = "after"
    zero_centered: bool = False
    gate: Gate | None = None

    def __str__(self) -> str:
        options = [f"cast={self.cast!r}"] if self.cast != "after" else []
        options += ["zero_centered=True"] if self.zero_centered else []
        if self.gate is not None:
            options += [f"gate_activation={self.gate.activation!r}"]
            options += ["gate_first=True"] if self.gate.first else []
            options += [f"group_size={self.gate.group_size}"] if self.gate.group_size else []
        name = "gated_rms_norm" if self.gate is not None else self.kind
        return f"normkit.functional.{name}({', '.join(options)})"

    def load(self) -> type[nn.Module]:
        """The layer. Its forward is bound to a norm of another class, whose weight, bias and eps it reads."""
        # The package allows a layer no other members than these.
        members = {"forward": self.forward(), "has_backward": True, "can_torch_compile": True}
        return type("GatedRMSNorm" if self.gate else _CLASSES[self.kind], (nn.Module,), members)

    def forward(self) -> Callable[..., Tensor]:
        """The forward of the layer. Callers pass tensors by position: the hook compares no names."""
        eps_of = _reader(self.eps)
        options: Any = {"cast": self.cast, "zero_centered": self.zero_centered}

        def layer_norm(self: Any, hidden_states: Tensor) -> Tensor:
            shape = self.normalized_shape if self.weight is None else self.weight.shape
            y: Tensor = functional.layer_norm(hidden_states, shape, self.weight, self.bias, eps_of(self), **options)
            return y

        def rms_norm(self: Any, hidden_states: Tensor) -> Tensor:
            y: Tensor = functional.rms_norm(hidden_states, self.weight.shape, self.weight, eps_of(self), **options)
            return y

        if self.gate is None:
            return layer_norm if self.kind == "layer_norm" else rms_norm
        around = {"group_size": self.gate.group_size, "gate_first": self.gate.first}
        options = {**options, **around, "gate_activation": _name(self.gate.activation)}

        def gated_rms_norm(self: Any, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
            y: Tensor = functional.gated_rms_norm(hidden_states, gate, self.weight, eps_of(self), **options)
            return y

        return gated_rms_norm


_CLASSES = {"rms_norm": "RMSNorm", "layer_norm": "LayerNorm"}


def is_one(forward: object) -> bool:
    """Whether a forward was made here."""
    return getattr(forward, "__module__", "") == __name__


def _name(activation: str) -> str | None:
    return None if activation == "none" else activation


def _reader(eps: str | float | None) -> Callable[[Any], Any]:
    if not isinstance(eps, str):
        return lambda _: eps
    return lambda norm: getattr(norm, eps)
