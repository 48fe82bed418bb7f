"""Kinds of values that a digest treats apart, and how their order is made the same in every process."""

from __future__ import annotations

import random
import sys
import threading
import types
import weakref
from enum import Enum
from typing import Any

import torch

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), type(NotImplemented))
DESCRIPTORS = (
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.MethodWrapperType,
)
IDLE = (
    *(type(threading.Lock()), type(threading.RLock())),
    *(weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet),
)
"""Locks and caches, on which no result depends."""
BOOKKEEPING = {
    *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__", "__annotate__"),
    *("__annotate_func__", "__annotations_cache__", "__firstlineno__", "__static_attributes__", "__orig_bases__"),
    *("__parameters__", "__dataclass_params__", "__slotnames__", "__type_params__"),
    *("_abc_impl", "_value2member_map_", "_hashable_values_", "_autograd_function_id", "_backward_cls"),
}
"""Entries of a class that Python and torch write: prose, line numbers, caches, and numbers that count classes."""


def is_plain(value: Any, depth: int = 3) -> bool:
    """Whether a sequence has only plain values, also in sequences in it, whose text is then its digest."""
    return all(
        type(each) in PLAIN or (type(each) in (list, tuple) and depth and is_plain(each, depth - 1)) for each in value
    )


def order(value: Any) -> str | None:
    """A text by which the elements of a set can be sorted in the same order in every process."""
    if type(value) in PLAIN:
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if type(value) in (tuple, frozenset):
        inner = [order(each) for each in value]
        return None if None in inner else f"{sorted(map(str, inner)) if isinstance(value, frozenset) else inner}"
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name and hasattr(value, "__module__") else None


def arrays() -> tuple[type, ...]:
    numpy: Any = sys.modules.get("numpy")
    return (numpy.ndarray, numpy.generic) if numpy else ()


def generators() -> tuple[type, ...]:
    numpy: Any = sys.modules.get("numpy.random")
    return (torch.Generator, random.Random, *((numpy.Generator, numpy.RandomState) if numpy else ()))


def global_generators() -> list[Any]:
    """The generators of torch, `random` and `numpy.random`, whose state is no property of the code."""
    numpy: Any = sys.modules.get("numpy.random")
    python: Any = random
    return [torch.default_generator, python._inst, *([numpy.mtrand._rand] if numpy else ())]


def is_extension(module: types.ModuleType) -> bool:
    return f"{getattr(module, '__file__', '')}".endswith((".so", ".pyd", ".dylib"))
