"""The class that `freeze` gives a norm, and how parts of a norm are frozen and let go.

A frozen norm has to use its running statistics whatever ``train()`` is called later, on it or on any module around it,
and still be an instance of its class with the same state dict. ``train()`` sets an attribute of every module, so a flag
would be lost. `freeze` therefore exchanges the class of the norm for a subclass, in which `training` is a property that
is always False. The object stays the same, since models, optimizers and hooks hold it. Each class of norms gets such a
subclass when one of its instances is first frozen (`_frozen_class`); `unfreeze` gives the norm its own class again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parameter import UninitializedBuffer

from normkit.errors import StateError
from normkit.tools.model.statistics import keeps_statistics, kind_of, statistics_of

MARK = "normkit_frozen"
"""The key of the note of frozen parts, in the metadata of a state dict and among the attributes of the norm."""


class Frozen:
    """The base of the classes of norms with frozen parts; see `_frozen_class`."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # pickle and deepcopy find classes by name, and this one is made at run time: they get the way to make it again.
        made, arguments, *rest = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        base = type(self).__bases__[-1]
        plain = tuple(base if argument is type(self) else argument for argument in arguments)
        return _rebuild, (base, made, plain), *rest

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        if type(self) in _CLASSES.values():
            _set_class(cast(nn.Module, self), self.__dict__[MARK])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        metadata = getattr(destination, "_metadata", None)
        if metadata is not None:
            metadata.setdefault(prefix[:-1], {})[MARK] = sorted(self.__dict__[MARK])


class _NoBatchNorm(type):
    """The type of classes that `isinstance` finds among `BatchNorm2d` and the like, but not among `_BatchNorm`.

    Utilities that exchange batch norms or reset their statistics look for torch's abstract `_BatchNorm`:
    ``convert_sync_batchnorm`` of torch and of timm, ``update_bn``. They must not find frozen ones.
    """

    def mro(cls) -> list[type]:
        """The bases, with a class that has the same methods in place of `_BatchNorm`."""
        return [_SAME_METHODS if base is _BatchNorm else base for base in super().mro()]


_SAME_METHODS = type("_BatchNorm", (_NormBase,), {"__init__": _BatchNorm.__init__, "forward": _BatchNorm.forward})


class _FrozenStatistics(Frozen, metaclass=_NoBatchNorm):
    """The base if the statistics are frozen."""

    @property
    def training(self) -> bool:
        """False, so that forward uses the statistics and updates nothing."""
        return False

    @training.setter
    def training(self, mode: bool) -> None:
        # Kept for unfreeze.
        self.__dict__["training"] = mode

    def reset_running_stats(self) -> None:
        """Do nothing, because the statistics are frozen."""

    def reset_parameters(self) -> None:
        """Reset statistics too: a lazy norm fills its new memory with this at its first batch."""
        super().reset_parameters()  # type: ignore[misc]
        kept = statistics_of(cast(nn.Module, self))
        if not any(isinstance(statistic, UninitializedBuffer) for statistic in kept.values()):
            super().reset_running_stats()  # type: ignore[misc]


_CLASSES: dict[tuple[type, bool], type] = {}


def _frozen_class(base: type, statistics: bool) -> type[nn.Module]:
    """The subclass of `base` for frozen norms; it has the same name, by which tracers recognise the class."""
    key = base, statistics
    if key not in _CLASSES:
        names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
        if becomes := getattr(base, "cls_to_become", None):
            # The class that a lazy norm takes at its first batch.
            names["cls_to_become"] = _frozen_class(becomes, statistics)
        added = _FrozenStatistics if statistics else Frozen
        kind = type(base)
        if not issubclass(kind, type(added)):
            kind = type(kind.__name__, (type(added), kind), {})
        _CLASSES[key] = kind(base.__name__, (added, base), names)
    return _CLASSES[key]


def _set_class(norm: nn.Module, held: Mapping[str, Any]) -> None:
    """Set the class of a norm to the one for its frozen parts, and note these parts."""
    base = plain_class(norm)
    norm.__class__ = _frozen_class(base, "statistics" in held) if held else base
    vars(norm).pop(MARK, None)
    if held:
        vars(norm)[MARK] = held


def _rebuild(base: type[nn.Module], made: Callable[..., nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    norm = made(*arguments)
    norm.__class__ = _frozen_class(base, False)
    return norm


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, without what `freeze` adds to it."""
    return type(module).__bases__[-1] if type(module) in _CLASSES.values() else type(module)


def is_frozen(module: nn.Module) -> bool:
    """Whether `freeze` holds the module's running statistics."""
    return isinstance(module, _FrozenStatistics)


def freeze_successor(old: nn.Module, new: nn.Module) -> None:
    """Freeze the successor of a frozen norm: its statistics, if it has any, and the parameters that it took over.

    Parameters that require a gradient are new ones, and those of an activation are none of the norm's.
    """
    if not isinstance(new, Frozen):
        vars(new).pop(MARK, None)
    if isinstance(old, Frozen):
        for module in set(new.modules()) - set(old.modules()):
            vars(module)["training"] = vars(old)["training"]
        held = vars(old)[MARK]
        required = held.get("affine", {})
        inside = {id(p) for child in old.children() for p in child.parameters()}
        taken = [n for n, p in new.named_parameters(recurse=False) if not (p.requires_grad or id(p) in inside)]
        # Statistics of another kind are new, and would never become those of the data.
        same = keeps_statistics(new) and kind_of(new) is kind_of(old)
        possible = {"statistics": same, "affine": any(name in required for name in taken)}
        freeze_parts({new: tuple(part for part in held if possible[part])}, required)


def freeze_parts(
    wanted: Mapping[nn.Module, tuple[str, ...]], required: Mapping[str, bool] = MappingProxyType({})
) -> None:
    """Freeze parts of norms; `required` says which parameters required a gradient before they were frozen elsewhere."""
    for norm, parts in wanted.items():
        if isinstance(norm, Frozen) and not set(parts) <= vars(norm)[MARK].keys():
            check_class("freeze", norm)
    # Noted for all norms before any changes, because norms may share parameters.
    before = {
        norm: {n: p.requires_grad or required.get(n, False) for n, p in norm.named_parameters(recurse=False)}
        for norm, parts in wanted.items()
        if "affine" in parts
    }
    for norm in before:
        for p in norm.parameters(recurse=False):
            # An optimizer updates every parameter that has a gradient, even a gradient of 0.
            # requires_grad_() cannot be called on lazy parameters.
            p.requires_grad, p.grad = False, None
    for norm, parts in wanted.items():
        # A new dictionary each time: shallow copies of a module share the old one.
        held = {part: before[norm] if part == "affine" else {} for part in parts} | vars(norm).get(MARK, {})
        if held.keys() != vars(norm).get(MARK, {}).keys():
            _set_class(norm, held)


def unfreeze_parts(norm: nn.Module, parts: tuple[str, ...]) -> None:
    """Undo `freeze_parts` for parts that are held."""
    held = dict(vars(norm)[MARK])
    for part in parts:
        required = held.pop(part)
        for name, parameter in norm.named_parameters(recurse=False):
            if name in required:
                parameter.requires_grad = required[name]
    _set_class(norm, held)


def check_class(function: str, norm: nn.Module) -> None:
    """Refuse a frozen norm whose class was changed again since."""
    if type(norm) not in _CLASSES.values():
        raise StateError(
            f"{function} needs norms of the class that freeze gave them, and {type(norm).__name__} was made since: "
            "remove its parametrization first"
        )
