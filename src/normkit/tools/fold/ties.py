"""Parameters that several modules of a model share, and how a layer gets its own."""

from __future__ import annotations

from typing import Any

from torch import nn

from normkit.tools.model.refusal import RefusedError
from normkit.tools.model.tree import module_places

MAPPING, SWITCH = "all_tied_weights_keys", "tie_word_embeddings"
"""What transformers' models keep of their shared parameters, and the entry of their config that shares them."""


class Ties:
    """The shared parameters of a model: the same object in several modules, or listed as such by transformers."""

    def __init__(self, model: nn.Module) -> None:
        self.places: dict[int, list[str]] = {}
        self.lists: list[tuple[Any, str]] = []
        parameters: dict[str, nn.Parameter] = {}
        for place in module_places(model):
            for key, parameter in place.module._parameters.items():
                if parameter is not None:
                    self.places.setdefault(id(parameter), []).append(joined(place.name, key))
                    parameters |= {joined(name, key): parameter for name in place.names}
            if isinstance(vars(place.module).get(MAPPING), dict):
                self.lists.append((place.module, place.name))
        for module, prefix in self.lists:
            for pair in vars(module)[MAPPING].items():
                first, second = (parameters.get(joined(prefix, name)) for name in pair)
                if first is not None and second is not None and first is not second:
                    # Not the same now: the next call of tie_weights() would make them so.
                    self.places[id(first)].append(joined(prefix, pair[1]))
                    self.places[id(second)].append(joined(prefix, pair[0]))

    def others(self, parameter: nn.Parameter, own: str) -> list[str]:
        """The other names of a parameter of a layer."""
        return [name for name in self.places.get(id(parameter), ()) if name != own]

    def listed(self, names: set[str]) -> list[tuple[Any, str]]:
        """The models whose lists contain one of these names.

        Raises:
            RefusedError: such a list has other parameters too, which its switch would separate as well.
        """
        found = []
        for module, prefix in self.lists:
            pairs = [{joined(prefix, name) for name in pair} for pair in vars(module)[MAPPING].items()]
            if not any(pair & names for pair in pairs):
                continue
            rest = [pair for pair in pairs if not pair & names]
            if rest:
                raise RefusedError(f"config.{SWITCH}=False would also untie {min(rest[0])!r} when the model is loaded")
            found.append((module, prefix))
        return found


def untie(models: list[tuple[Any, str]]) -> list[tuple[Any, dict[str, str], bool]]:
    """Empty the lists of these models and turn off the switch of their configs; what they were, for `tie_again`."""
    before = []
    for module, _ in models:
        config = getattr(module, "config", None)
        before.append((module, dict(vars(module)[MAPPING]), bool(getattr(config, SWITCH, False))))
        vars(module)[MAPPING] = {}
        if before[-1][2]:
            setattr(config, SWITCH, False)
    return before


def tie_again(before: list[tuple[Any, dict[str, str], bool]]) -> None:
    """Undo `untie`."""
    for module, mapping, switch in reversed(before):
        vars(module)[MAPPING] = mapping
        if switch:
            setattr(module.config, SWITCH, True)


def joined(prefix: str, name: str) -> str:
    """The name of a parameter in a model; the prefix is empty for the model itself."""
    return f"{prefix}.{name}" if prefix else name
