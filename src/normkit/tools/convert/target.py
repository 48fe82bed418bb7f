"""Reads the argument `to` of `convert`: a method for all norms, a mapping, or a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from torch import nn

from normkit import catalog
from normkit.errors import ArgumentError, DtypeError, nearest
from normkit.pattern import bound
from normkit.tools.convert.build import AFFINE, REGIONS, is_pattern
from normkit.tools.convert.build import OWN as OWN_LAYERS
from normkit.tools.convert.identity import IDENTITY
from normkit.tools.model.info import NormInfo
from normkit.tools.model.names import fits
from normkit.tools.model.tree import Place

OWN = "normkit's own"
"""The default target."""

METHODS = (*REGIONS, *OWN_LAYERS, AFFINE, IDENTITY)
"""The methods that a norm can be converted to."""

Method: TypeAlias = str | type[nn.Module] | None
# A key is a class or a string.
To: TypeAlias = Method | Mapping[Any, Method] | Callable[[str, nn.Module], Method | nn.Module]


@dataclass(frozen=True)
class ConversionTarget:
    """What the norms of a model are converted to; made by `ConversionTarget.of`, which checks it."""

    to: To

    @classmethod
    def of(cls, to: To, places: list[Place]) -> ConversionTarget:
        """The target, with the names of its methods as in the catalog."""
        if isinstance(to, str | type):
            return cls(method_name(to))
        if to is None or callable(to):
            return cls(to)
        if not isinstance(to, Mapping):
            raise DtypeError(
                f"to must be a method, a mapping or a function, got {type(to).__name__}: "
                "give a name such as 'group_norm'"
            )
        return cls({_key(key, places): None if value is None else method_name(value) for key, value in to.items()})

    def method(self, place: Place, info: NormInfo) -> str | nn.Module | None:
        """The method for one norm; None to leave it as it is."""
        if self.to is None:
            return OWN
        if isinstance(self.to, str):
            return self.to
        if isinstance(self.to, Mapping):
            fitting = (value for key, value in self.to.items() if _fits(key, place, info))
            return cast("str | None", next(fitting, None))
        wanted = self.to(place.name, place.module)
        if wanted is None or isinstance(wanted, nn.Module):
            return wanted
        return method_name(wanted)


def method_name(name: str | type) -> str:
    """The one name of a method that a norm can become, or a pattern that can be read.

    >>> method_name("GN"), method_name("b (g=4 [c]) [...]")
    ('group_norm', 'b (g=4 [c]) [...]')
    >>> method_name("weight_norm")
    Traceback (most recent call last):
    normkit.errors.ArgumentError: a norm can become batch_norm, layer_norm, instance_norm, group_norm, rms_norm, \
layer_norm2d, scale_norm, dynamic_tanh, dynamic_erf, switchable_norm, power_norm, iter_norm, affine, identity or a \
pattern, got 'weight_norm': insert applies weight norms to the layers themselves
    """
    if isinstance(name, type):
        name = name.__name__
    if not isinstance(name, str):
        raise DtypeError(f"a method is named by a string, got {type(name).__name__}: give a name such as 'group_norm'")
    if is_pattern(name):
        bound(name, {})
        return name
    if name in (AFFINE, IDENTITY):
        return name
    try:
        found = catalog.find(name)
    except ArgumentError:
        known = [method.name for method in catalog.METHODS] + [AFFINE, IDENTITY]
        raise ArgumentError(f"no normalization is called {name!r}: {nearest(name, known)}") from None
    if found.name not in METHODS:
        of_weights = "insert applies weight norms to the layers themselves"
        remedy = of_weights if found.of_weights else nearest(found.name, METHODS)
        raise ArgumentError(f"a norm can become {', '.join(METHODS)} or a pattern, got {name!r}: {remedy}")
    return found.name


def _key(key: Any, places: list[Place]) -> Any:
    """A class, or a tuple of the kind of key and its text."""
    if isinstance(key, type):
        return key
    if not isinstance(key, str):
        raise DtypeError(f"a key of to must be a class, a method or a name, got {key!r}: give nn.BatchNorm2d")
    if any(fits(place.names, key) for place in places):
        return ("name", key)
    if any(mark in key for mark in "*?.["):
        names = [place.name for place in places]
        raise ArgumentError(f"no norm of the model is called {key!r}: {nearest(key, names[:20])}")
    try:
        return ("method", catalog.find(key).name)
    except ArgumentError:
        known = [place.name for place in places] + [method.name for method in catalog.METHODS]
        raise ArgumentError(f"{key!r} is neither a norm of the model nor a method: {nearest(key, known)}") from None


def _fits(key: Any, place: Place, info: NormInfo) -> bool:
    if isinstance(key, type):
        return isinstance(place.module, key)
    what, text = key
    return fits(place.names, text) if what == "name" else info.kind == text
