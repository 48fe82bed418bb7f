"""The tree of a model's modules: visits each once, finds the norms, and is the only code that exchanges modules."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import _WrappedHook
from torch.nn.utils import parametrize

from normkit.errors import StateError
from normkit.evaluation import modes_of, restore_modes
from normkit.tools.model.frozen import freeze_successor
from normkit.tools.model.info import NormInfo
from normkit.tools.model.recognise import describe, identity
from normkit.tools.model.refusal import RefusedError
from normkit.tools.model.wrapped import check_module

M = TypeVar("M", bound=nn.Module)

Layer: TypeAlias = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear
)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
"""The layers that a norm can follow, and that a batch norm can be folded into."""

HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
    "_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
"""Where `torch.nn.Module` keeps its hooks."""


def has_hooks(module: nn.Module) -> bool:
    """Whether other code gets what a module reads, returns, or has a gradient of."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(vars(module)[name] for name in hooks)


def hooked(module: nn.Module) -> str:
    """Why a module may do more than its class says; empty if it does not."""
    if has_hooks(module):
        return "has hooks, which would see other values"
    return "has a forward of its own" if "forward" in vars(module) else ""


def refuse_layer(layer: nn.Module, name: str) -> None:
    """Refuse a layer whose weight is not plain, or that may do more than its class says.

    Args:
        layer: whose weight is to be changed.
        name: its name in the text.

    Raises:
        RefusedError: with the reason.
    """
    if parametrize.is_parametrized(layer) or layer._parameters.get("weight") is None:
        raise RefusedError(f"the weight of {name} is computed from others: remove its parametrization first")
    for key, parameter in layer.named_parameters(recurse=False):
        if what := unusual(parameter):
            raise RefusedError(f"the {key} of {name} is {what}")
    if reason := hooked(layer):
        raise RefusedError(f"{name} {reason}")


def unusual(parameter: nn.Parameter) -> str:
    """Why a parameter cannot be exchanged for one with other values; empty if it can."""
    if type(parameter) is not nn.Parameter:
        return f"a {type(parameter).__name__}, whose values cannot be set"
    if parameter.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        return str(parameter.dtype)
    return "" if parameter.layout is torch.strided else str(parameter.layout)


@dataclass(frozen=True, eq=False)
class Place:
    """A module and all its places in a model.

    Attributes:
        name: dotted, as in ``named_modules``; empty for the model itself.
        module: the module.
        parents: each holder with the key it holds the module under; several if the module is shared.
        names: all its names, in the order of the model.
    """

    name: str
    module: nn.Module
    parents: tuple[tuple[nn.Module, str], ...]
    names: tuple[str, ...]


def module_places(model: nn.Module) -> Iterator[Place]:
    """Every module of a model once, in the order of the model, with all its places.

    Args:
        model: any module; it may be changed during the iteration.

    Returns:
        An iterator of `Place`.

    Raises:
        DtypeError: `model` is not a module.
        StateError: the model is scripted, so that its modules cannot be exchanged.

    Example:
        >>> shared = nn.Linear(2, 2)
        >>> [(place.name, len(place.parents)) for place in module_places(nn.Sequential(shared, nn.ReLU(), shared))]
        [('', 0), ('0', 2), ('1', 1)]
    """
    check_module(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise StateError(
            "the modules of a scripted model cannot be exchanged, "
            f"got {type(model).__name__}: change it before it is scripted"
        )
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    parents: dict[nn.Module, list[tuple[nn.Module, str]]] = {module: [] for module in names}
    for module in names:
        for key, child in module._modules.items():
            if child is not None:
                parents[child].append((module, key))
    for module, known in names.items():
        yield Place(known[0], module, tuple(parents[module]), tuple(known))


def norms(model: nn.Module) -> Iterator[tuple[Place, NormInfo]]:
    """Every norm of a model once, with what is known of it; also those that are not understood, with the reason.

    Norms of weights (parametrizations) are not among them, and modules inside a norm are skipped.

    Args:
        model: any module.

    Returns:
        An iterator of pairs of `Place` and `NormInfo`.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> [(place.name, info.kind, info.channels) for place, info in norms(model)]
        [('1', 'batch_norm', 8)]
    """
    inside: set[nn.Module] = set()
    known: dict[Any, NormInfo | None] = {}
    for place in module_places(model):
        if place.module in inside or "parametrizations" in place.name.split("."):
            continue
        key = identity(place.module)
        if key not in known:
            known[key] = describe(place.module)
        info = known[key]
        if info is not None:
            inside.update(place.module.modules())
            yield place, info


def copy_of(model: M, memo: dict[int, Any] | None = None) -> M:
    """A deep copy with each module in the mode of its original: that of a `torch.fx.GraphModule` begins in training.

    Args:
        model: any module.
        memo: what is not copied, as `copy.deepcopy` takes it.

    Raises:
        StateError: the model cannot be copied.

    Example:
        >>> copy_of(nn.Sequential(nn.ReLU()).eval()).training
        False
    """
    modes = modes_of(model)
    known = {name: modes[module] for name, module in model.named_modules(remove_duplicate=False)}
    try:
        model = copy.deepcopy(model, memo)
    except Exception as error:
        raise StateError(f"the model cannot be copied ({error}): use inplace=True") from error
    restore_modes({module: known[name] for name, module in model.named_modules() if name in known})
    return model


def replace(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replace old modules by new ones in all their places; the new ones take over hooks and mode.

    A shared module stays shared. Lists, tuples and dictionaries that a module keeps as plain attributes are
    followed too. Handles of hooks that were registered on the old module work on the new one. A new module that
    contains the old one takes over nothing: it wraps it.

    Args:
        model: changed in place.
        new: each old module of the model and what takes its place.

    Returns:
        The model, or its successor if the model itself is among the old ones.

    Raises:
        StateError: an old module is not in the model; nothing is changed then.

    Example:
        >>> model = nn.Sequential(nn.ReLU(), nn.ReLU())
        >>> replace(model, {model[1]: nn.Tanh()})
        Sequential(
          (0): ReLU()
          (1): Tanh()
        )
    """
    places = {place.module: place for place in module_places(model)}
    for old in new:
        if old not in places:
            raise StateError(
                f"only a module of the model can be replaced, and {type(old).__name__} is not in "
                f"{type(model).__name__}: look it up with module_places(model)"
            )
    for old, successor in new.items():
        if old not in set(successor.modules()):
            _carry(old, successor)
        for parent, key in places[old].parents:
            parent._modules[key] = successor
    for module in places:
        for key, value in vars(module).items():
            if key not in _OWN:
                vars(module)[key] = _swapped(value, new, set())
    return new.get(model, model)


_OWN = frozenset({*vars(nn.Module()), *HOOKS})
"""The attributes of every module, which are not plain ones."""


def _swapped(value: Any, new: Mapping[nn.Module, nn.Module], seen: set[int]) -> Any:
    """The value with old modules exchanged: lists and dictionaries are changed in place, tuples made again."""
    if isinstance(value, nn.Module):
        return new.get(value, value)
    if not isinstance(value, list | dict | tuple) or id(value) in seen:
        return value
    seen.add(id(value))
    for key, item in [*value.items()] if isinstance(value, dict) else [*enumerate(value)]:
        swapped = _swapped(item, new, seen)
        if swapped is item:
            continue
        if isinstance(value, tuple):
            items = [_swapped(each, new, seen) for each in value]
            return value._make(items) if hasattr(value, "_make") else type(value)(items)
        value[key] = swapped
    return value


def _carry(old: nn.Module, new: nn.Module) -> None:
    """Hooks and mode of the old module; and those other attributes that the new one does not have."""
    kept = set(old.modules())
    for module in new.modules():
        if module not in kept:
            module.training = old.training
    state, successor = vars(old), vars(new)
    for name in HOOKS:
        # The same dictionary, because the handle of a hook removes it from the dictionary and has no module.
        if name in state:
            successor[name] = state[name]
    for name in ("_state_dict_hooks", "_load_state_dict_pre_hooks"):
        for key, hook in successor[name].items():
            if isinstance(hook, _WrappedHook) and hook.with_module:
                successor[name][key] = _WrappedHook(hook.hook, new)
    for name, value in state.items():
        if not hasattr(type(new), name):  # an option such as `activation` has its default in the class
            successor.setdefault(name, value)
    freeze_successor(old, new)
