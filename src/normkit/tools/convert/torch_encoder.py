"""Turns off the fast path of torch's Transformer encoder, which does not call its norms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from normkit.tools.model.tree import Place

BEFORE = "fast_path_before"
"""The attribute with the switches as they were, on a module whose fast path was turned off."""

SWITCHES: Mapping[type[nn.Module], str] = {
    nn.TransformerEncoderLayer: "activation_relu_or_gelu",
    nn.TransformerEncoder: "use_nested_tensor",
}
"""The attribute that lets each of them take the fast path; it has no other use."""


def encoder_layers(place: Place) -> list[nn.Module]:
    """The encoder layers of torch that hold a norm; in evaluation they compute a layer norm, whatever module it is."""
    return [parent for parent, _ in place.parents if isinstance(parent, nn.TransformerEncoderLayer)]


def turn_off(model: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Let encoder layers call their norms in evaluation, and the encoders around them pass no nested tensors.

    Outputs are the same but for rounding. Without it a layer reads weight and eps of its norms.
    """
    wanted = set(layers)
    for module in model.modules() if wanted else ():
        inside = isinstance(module, nn.TransformerEncoder) and not wanted.isdisjoint(module.layers)
        if module in wanted or inside:
            name = _switch(module)
            if getattr(module, name, None):
                vars(module).setdefault(BEFORE, getattr(module, name))
                setattr(module, name, False)


@contextmanager
def turned_off(model: nn.Module) -> Iterator[None]:
    """All encoder layers call their norms, so that these can be observed; at the end the model is as it was."""
    kinds = tuple(SWITCHES)
    before = {m: getattr(m, _switch(m)) for m in model.modules() if isinstance(m, kinds) and hasattr(m, _switch(m))}
    try:
        for module in before:
            setattr(module, _switch(module), False)
        yield
    finally:
        for module, value in before.items():
            setattr(module, _switch(module), value)


def turn_on(model: nn.Module, layers: Iterable[Any]) -> None:
    """Undo `turn_off` for encoder layers whose norms are all torch's again, and the encoders around them."""
    back: set[Any] = {layer for layer in layers if all(isinstance(n, nn.LayerNorm) for n in (layer.norm1, layer.norm2))}
    # An encoder comes before its layers, so that these still say whether their fast path is off.
    for module in [*model.modules()] if back else ():
        inside = isinstance(module, nn.TransformerEncoder) and back.issuperset(
            layer for layer in module.layers if BEFORE in vars(layer)
        )
        if BEFORE in vars(module) and (module in back or inside):
            setattr(module, _switch(module), vars(module).pop(BEFORE))


def _switch(module: nn.Module) -> str:
    return next(name for kind, name in SWITCHES.items() if isinstance(module, kind))
