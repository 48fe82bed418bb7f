"""Norms that keep their running statistics and affine parameters as they are, whatever ``.train()`` says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import nn

from normkit.errors import ArgumentError, StateError, nearest
from normkit.tools.running import Where, chosen, keeps_statistics, norms_of

MARK = "normkit_frozen"
"""Where a frozen norm says so in the metadata of a state dict, and on itself."""


@dataclass(frozen=True)
class Freezing:
    """The report of `freeze` and `unfreeze`: the norms concerned, by name, and those left out with the reason."""

    norms: dict[str, tuple[str, ...]]
    left: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [(name, " and ".join(parts)) for name, parts in self.norms.items()]
        rows += [(name, f"left: {why}") for name, why in self.left.items()]
        return "\n".join(f"{name or '(the model)':<32} {what}" for name, what in rows) or "no norms"


class _Frozen:
    """What the class of a frozen norm adds to its own; see `_frozen_class`."""

    @property
    def training(self) -> bool:
        """False while the statistics are frozen, so that forward uses them and moves nothing."""
        # In this order: the compiler of torch 2.10 cannot read an entry that has a property's name.
        return "statistics" not in self.__dict__[MARK] and bool(self.__dict__["training"])

    @training.setter
    def training(self, mode: bool) -> None:
        # What train() and eval() ask for is kept for unfreeze.
        self.__dict__["training"] = mode

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is made at run time, so pickle and deepcopy get the recipe in its place.
        made, arguments, *rest = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        base = type(self).__bases__[-1]
        plain = tuple(base if argument is type(self) else argument for argument in arguments)
        return _rebuild, (base, made, plain), *rest

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        metadata = getattr(destination, "_metadata", None)
        if metadata is not None:
            metadata.setdefault(prefix[:-1], {})[MARK] = sorted(self.__dict__[MARK])


_CLASSES: dict[type, type[nn.Module]] = {}


def _frozen_class(base: type) -> type[nn.Module]:
    """The class of a frozen norm: its own with one property more, under the same name, so that tracers know it."""
    if base not in _CLASSES:
        names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
        _CLASSES[base] = type(base.__name__, (_Frozen, base), names)
    return _CLASSES[base]


def _rebuild(base: type[nn.Module], made: Callable[..., nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    norm = made(*arguments)
    norm.__class__ = _frozen_class(base)
    return norm


def is_frozen(module: nn.Module) -> bool:
    """Whether `freeze` holds the module's running statistics."""
    return isinstance(module, _Frozen) and "statistics" in module.__dict__[MARK]


def freeze(
    model: nn.Module,
    statistics: bool = True,
    affine: bool = True,
    *,
    where: Where = None,
    like: Mapping[str, Any] | None = None,
) -> Freezing:
    """Hold running statistics and affine parameters of batch and instance norms, whatever ``.train()`` says later.

    A frozen norm computes as in evaluation: ``y = (x - running_mean) / sqrt(running_var + eps) * weight + bias``. It is
    still an instance of its class, has the same ``state_dict``, and stays frozen through `copy.deepcopy`, `pickle`,
    `torch.save` of the module, and `torch.compile`. Freezing twice changes nothing; parts add up. The other modules
    train on, dropout among them.

    Args:
        model: changed in place.
        statistics: hold running mean and variance, and use them.
        affine: set ``requires_grad`` of the norm's own parameters to False. A later ``requires_grad_(True)`` undoes it.
        where: names or patterns of names (``"backbone.*"``), or a function of name and module; None for all.
        like: a ``state_dict`` of a model with frozen norms: freeze the same parts of the same norms. The note is in
            its metadata, which plain models ignore and `torch.save` keeps, but a copy as a plain dict does not.

    Returns:
        A `Freezing`: the norms with what is frozen of each, and those left out.

    Raises:
        ArgumentError: nothing to freeze: no norm with running statistics, a pattern that fits none, neither part asked
            for, or a `like` without metadata or of another model. Nothing is changed then.

    Example:
        >>> import torch, normkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout())
        >>> print(normkit.freeze(model))
        1                                statistics and affine
        >>> model = model.train()
        >>> model[1].training, model[1].weight.requires_grad, model[2].training
        (False, False, True)
    """
    norms = norms_of(model)
    if like is not None:
        if where is not None:
            raise ArgumentError("freeze takes where= or like=, got both: like= names its norms itself")
        wanted = _noted(like, norms)
    else:
        parts = tuple(name for name, asked in (("statistics", statistics), ("affine", affine)) if asked)
        if not parts:
            raise ArgumentError("freeze needs statistics=True or affine=True, got neither: call unfreeze to undo")
        wanted = dict.fromkeys(chosen(model, norms, where), parts)
        if not any(keeps_statistics(norms[name]) for name in wanted):
            raise ArgumentError(
                f"freeze needs norms with running statistics, {type(model).__name__} has none there: "
                "for the parameters of other norms call requires_grad_(False)"
            )
    left = {name: "it has no running statistics" for name in wanted if not keeps_statistics(norms[name])}
    done = {name: parts for name, parts in wanted.items() if name not in left}
    for name, parts in done.items():
        _hold(norms[name], parts)
    return Freezing(done, left)


def unfreeze(model: nn.Module, statistics: bool = True, affine: bool = True, *, where: Where = None) -> Freezing:
    """Undo `freeze`: parameters require gradients as before, and the mode is the one ``.train()`` last asked for.

    Args:
        model: changed in place.
        statistics, affine: which part to let go.
        where: names or patterns of names, or a function of name and module; None for all that is frozen.

    Returns:
        A `Freezing`: the norms with what was let go, and those of `where` that were not frozen.

    Raises:
        ArgumentError: a pattern that fits no norm.
        StateError: a norm that was parametrized after it was frozen.

    Example:
        >>> import torch, normkit
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
        >>> report = normkit.freeze(model), normkit.unfreeze(model)
        >>> model[0].training, model[0].weight.requires_grad
        (True, True)
    """
    done, left = {}, {}
    parts = tuple(name for name, asked in (("statistics", statistics), ("affine", affine)) if asked)
    for name, norm in chosen(model, norms_of(model), where).items():
        held = norm.__dict__[MARK] if isinstance(norm, _Frozen) else {}
        gone = tuple(part for part in parts if part in held)
        if not gone:
            if where is not None:
                left[name] = "it is not frozen"
            continue
        _let_go(norm, gone)
        done[name] = gone
    return Freezing(done, left)


def hand_on(old: nn.Module, new: nn.Module) -> None:
    """Freeze what takes the place of a frozen norm, if it has running statistics too; otherwise drop the mark."""
    if isinstance(old, _Frozen) and not isinstance(new, _Frozen):
        new.__dict__.pop(MARK, None)
        if keeps_statistics(new):
            new.__dict__[MARK] = old.__dict__[MARK]
            new.__class__ = _frozen_class(type(new))
            new.__dict__["training"] = old.__dict__["training"]


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, without what `freeze` adds to it."""
    return type(module).__bases__[-1] if type(module) in _CLASSES.values() else type(module)


def _hold(norm: nn.Module, parts: tuple[str, ...]) -> None:
    held = norm.__dict__.get(MARK, {})
    for part in parts:
        if part not in held:
            # A new dictionary each time: shallow copies of a module share the old one.
            held = held | {part: _freeze_affine(norm) if part == "affine" else {}}
    norm.__dict__[MARK] = held
    if not isinstance(norm, _Frozen):
        norm.__class__ = _frozen_class(type(norm))


def _let_go(norm: nn.Module, parts: tuple[str, ...]) -> None:
    if type(norm) not in _CLASSES.values():
        raise StateError(
            f"unfreeze needs norms of the class that freeze gave them, and {type(norm).__name__} was made since: "
            "remove its parametrization first"
        )
    held = dict(norm.__dict__[MARK])
    for part in parts:
        required = held.pop(part)
        for name, parameter in norm.named_parameters(recurse=False):
            if name in required:
                parameter.requires_grad_(required[name])
    norm.__dict__[MARK] = held
    if not held:
        norm.__class__ = type(norm).__bases__[-1]
        del norm.__dict__[MARK]


def _freeze_affine(norm: nn.Module) -> dict[str, bool]:
    """What each parameter required before; children, such as an activation's, are not affine."""
    before = {name: parameter.requires_grad for name, parameter in norm.named_parameters(recurse=False)}
    for _, parameter in norm.named_parameters(recurse=False):
        parameter.requires_grad_(False)
    return before


def _noted(state: Mapping[str, Any], norms: Mapping[str, nn.Module]) -> dict[str, tuple[str, ...]]:
    """Names and frozen parts in the metadata of a state dict."""
    metadata = getattr(state, "_metadata", None)
    if metadata is None:
        raise ArgumentError(
            f"like= must be a state_dict with its metadata, got a {type(state).__name__} without: "
            "give what state_dict() or torch.load returned, not a copy of its items"
        )
    noted = {name: tuple(entry[MARK]) for name, entry in metadata.items() if MARK in entry}
    for name in noted:
        if name not in norms:
            raise ArgumentError(f"like= freezes {name!r}, which is no norm of this model: {nearest(name, norms)}")
    return noted
