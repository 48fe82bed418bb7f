"""A digest of all that the functions of a task compute with: code, values and states, wherever they are reached.

Over 400 lines, because it is one class whose methods refer to each other, one for each kind of value.

A function is followed to the functions, classes and values that it reads: global names, values closed over, defaults,
bound arguments, attributes of objects, parameters of modules. The standard library and installed packages are not
followed; they count by name and version. The digest is the same in every process that runs the same code.
"""

from __future__ import annotations

import builtins
import copyreg
import hashlib
import sys
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import cached_property, lru_cache
from importlib import import_module
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normkit.study.task.source.bytecode import Import, reads
from normkit.study.task.source.kinds import (
    BOOKKEEPING,
    DESCRIPTORS,
    IDLE,
    PLAIN,
    arrays,
    generators,
    global_generators,
    is_extension,
    is_plain,
    order,
)
from normkit.study.task.source.packages import package_of


class Walk:
    """Digests values, and everything that they refer to.

    Args:
        lenient: for data sets: caches, counters of random generators, and objects whose state cannot be read are
            left out, because samples are digested too.

    Attributes:
        unknown: objects whose state cannot be read, by the name under which they were reached, with the reason.

    >>> def digest(value):
    ...     walk = Walk()
    ...     walk.add("value", value)
    ...     return walk.hexdigest()
    >>> digest([1, {2: "a"}]) == digest([1, {2: "a"}]) != digest([1, {2: "b"}])
    True
    """

    def __init__(self, lenient: bool = False) -> None:
        self.lenient = lenient
        self.unknown: dict[str, str] = {}
        self._digest = hashlib.sha256()
        self._seen: dict[int, int] = {}
        # Kept alive, so that no other object gets the id of one that was seen.
        self._kept: list[Any] = []
        # A queue instead of recursion: chains of calls may be longer than Python's stack.
        self._waiting: deque[tuple[Any, str]] = deque()
        self._kinds: tuple[tuple[Any, Describe], ...] = (
            (types.FunctionType, Walk._function),
            (types.MethodType, Walk._method),
            (types.BuiltinFunctionType, Walk._builtin),
            (types.ModuleType, Walk._file),
            (Enum, Walk._member),
            (type, Walk._class),
            ((staticmethod, classmethod, cached_property), Walk._wrapper),
            (property, Walk._property),
            (DESCRIPTORS, Walk._descriptor),
            (Tensor, Walk._tensor),
            (arrays(), Walk._array),
            (generators(), Walk._generator),
            ((torch.jit.ScriptModule, torch.jit.ScriptFunction), Walk._scripted),
            (nn.Module, Walk._nn_module),
            (weakref.ref, Walk._weak),
            (IDLE, Walk._idle),
            (type(lru_cache(order)), Walk._cached),
        )

    def add(self, name: str, value: Any) -> None:
        """Digest a value under a name, and all that it refers to."""
        self._emit("field", name)
        self._refer(value, name)
        while self._waiting:
            self._describe(*self._waiting.popleft())

    def hexdigest(self) -> str:
        """The digest of everything that was added."""
        return self._digest.hexdigest()

    def _emit(self, *texts: object) -> None:
        for text in texts:
            data = text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogatepass")
            self._digest.update(b"%d:" % len(data))
            self._digest.update(data)

    def _refer(self, value: Any, path: str) -> None:
        """Digest a plain value now, and a reference to any other, whose content follows later."""
        if type(value) in PLAIN:
            self._emit(type(value).__name__, repr(value))
        elif type(value) in (tuple, set, frozenset):
            # Equal constants may or may not be one object, so these are never references to an earlier one.
            self._emit("inline")
            self._waiting.append((value, path))
        elif id(value) in self._seen:
            self._emit("again", self._seen[id(value)])
        else:
            self._emit("new", len(self._seen))
            self._seen[id(value)] = len(self._seen)
            self._kept.append(value)
            self._waiting.append((value, path))

    def _describe(self, value: Any, path: str) -> None:
        describe = _CONTAINERS.get(type(value)) or next(
            (found for kinds, found in self._kinds if isinstance(value, kinds)), Walk._object
        )
        describe(self, value, path)

    def _unreadable(self, value: Any, path: str, reason: object) -> None:
        self._emit("unreadable")
        if not self.lenient:
            named = f"{type(value).__module__}.{type(value).__qualname__}"
            self.unknown.setdefault(path, f"{named}: {reason}".replace("builtins.", ""))

    # Containers

    def _sequence(self, value: Any, path: str) -> None:
        self._emit(type(value).__name__, len(value))
        if is_plain(value):
            self._emit(repr(value))
        else:
            for at, each in enumerate(value):
                self._refer(each, f"{path}[{at}]")

    def _mapping(self, value: Mapping[Any, Any], path: str) -> None:
        self._emit("mapping", len(value))
        for key, each in value.items():
            self._refer(key, path)
            self._refer(each, f"{path}[{key!r}]" if type(key) in (str, int) else path)

    def _set(self, value: Iterable[Any], path: str) -> None:
        names = [(order(each), each) for each in value]
        self._emit("set", len(names))
        if any(name is None for name, _ in names):
            self._unreadable(value, path, "the order of its elements differs between processes")
        else:
            for _, each in sorted(names, key=lambda pair: str(pair[0])):
                self._refer(each, path)

    # Numbers

    def _tensor(self, value: Tensor, path: str) -> None:
        self._emit("tensor", value.dtype, tuple(value.shape), value.requires_grad)
        try:
            flat = value.detach().resolve_conj().resolve_neg().cpu().contiguous().view(-1).view(torch.uint8)
            self._digest.update(flat.numpy().data)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            self._unreadable(value, path, str(error).partition("\n")[0])

    def _array(self, value: Any, path: str) -> None:
        self._emit("array", value.dtype.str, value.shape)
        if value.dtype.hasobject:
            self._refer(value.tolist(), path)
        elif type(value).__name__ == "memmap":
            # A file that may not fit into memory.
            self._digest.update(value.reshape(-1)[:: max(1, value.size // 65536)].tobytes())
        else:
            self._digest.update(value.tobytes())

    def _generator(self, value: Any, path: str) -> None:
        """A random generator counts by its seed where that is known, because its state changes with use."""
        self._emit(type(value).__qualname__)
        seeds: Any = getattr(getattr(value, "bit_generator", None), "seed_seq", None)
        if self.lenient or any(value is each for each in global_generators()):
            pass
        elif isinstance(value, torch.Generator):
            self._emit(value.initial_seed())
        elif hasattr(seeds, "entropy"):
            self._emit(seeds.entropy, seeds.spawn_key)
        else:
            self._object(value, path)

    # Code

    def _function(self, value: types.FunctionType, path: str) -> None:
        compiled = value.__dict__.get("_torchdynamo_orig_callable")
        where = f"{value.__globals__.get('__name__', '')}"
        package = package_of(where)
        if compiled is not None:
            self._refer(compiled, path)
        elif package is not None:
            self._emit("package", package, where, value.__code__.co_qualname)
            # It may hold values of the user too: decorators do.
            self._closure(value)
        else:
            self._emit("function", reads(value.__code__).digest)
            self._closure(value)
            for name, each in (*sorted(value.__dict__.items()), ("defaults", value.__defaults__)):
                self._emit("attribute", name)
                self._refer(each, f"{path}.{name}")
            self._refer(value.__kwdefaults__, path)
            self._read(value, where, path)

    def _closure(self, value: types.FunctionType) -> None:
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            self._emit("closure", name)
            self._cell(cell, f"{name} in {value.__qualname__}")

    def _cell(self, cell: types.CellType, path: str) -> None:
        try:
            content = cell.cell_contents
        except ValueError:
            self._emit("empty")
        else:
            self._refer(content, path)

    def _read(self, value: types.FunctionType, where: str, path: str) -> None:
        """Follow a function to the globals that it reads, and the modules that it imports."""
        facts, names = reads(value.__code__), value.__globals__
        for name in facts.names:
            self._emit("global", name)
            if name not in names:
                # The names of a notebook that another cell defines later are missing.
                self._emit("builtin" if hasattr(builtins, name) else "missing")
            elif isinstance(names[name], types.ModuleType):
                self._module(names[name], facts.attributes, set())
            else:
                self._refer(names[name], f"{where}.{name}".removeprefix("__main__."))
        for each in facts.imports:
            self._import(each, f"{names.get('__package__') or where.rpartition('.')[0]}", facts.attributes, path)

    def _import(self, asked: Import, package: str, attributes: frozenset[str], path: str) -> None:
        name = resolve_name("." * asked.level + asked.module, package) if asked.level else asked.module
        self._emit("import", name, asked.names)
        if (found := package_of(name)) is not None:
            self._emit(found)
            return
        try:
            # The function does the same when it is called.
            module = import_module(name)
        except Exception as error:
            self._unreadable(asked, path, f"importing {name} raises {type(error).__name__}: {error}")
            return
        for each in asked.names:
            if not hasattr(module, each):
                self._import(Import(f"{name}.{each}", 0, ()), "", attributes, path)
        self._module(module, attributes | {*asked.names}, set())

    def _module(self, module: types.ModuleType, names: frozenset[str] | set[str], before: set[str]) -> None:
        """A module of the user that code refers to: those of its values whose names occur in that code."""
        name = module.__name__
        if name in before:
            return
        before.add(name)
        read = sorted(names & vars(module).keys()) if package_of(name) is None else []
        if not read:
            self._file(module, name)
        for each in read:
            self._emit("of", each)
            value = vars(module)[each]
            if isinstance(value, types.ModuleType):
                self._module(value, names, before)
            else:
                self._refer(value, f"{name}.{each}")

    def _file(self, module: types.ModuleType, path: str) -> None:
        """A module as a whole, by its file; also an extension, whose code cannot be read otherwise."""
        if (package := package_of(module.__name__)) is not None:
            self._emit("package", package, module.__name__)
            return
        try:
            self._emit("file", Path(f"{module.__file__}").read_bytes())
        except (OSError, AttributeError) as error:
            self._unreadable(module, path, error)

    def _class(self, value: type, path: str) -> None:
        where = f"{value.__module__}"
        package = package_of(where)
        self._emit("class", value.__qualname__)
        module = sys.modules.get(where)
        # A class that a function of a package has made may hold values of the user.
        if package is not None and "<locals>" not in value.__qualname__:
            self._emit(package, where)
            return
        if module is not None and is_extension(module):
            self._file(module, path)
            return
        self._refer(type(value), path)
        for base in value.__bases__:
            self._refer(base, path)
        for name, each in sorted(vars(value).items()):
            if name not in BOOKKEEPING:
                self._emit("entry", name)
                self._refer(each, f"{value.__qualname__}.{name}")

    def _builtin(self, value: Any, path: str) -> None:
        owner = getattr(value, "__self__", None)
        self._emit("builtin", value.__module__, value.__qualname__)
        if isinstance(owner, types.ModuleType) or owner is None:
            module = sys.modules.get(value.__module__ or "")
            if module is not None and package_of(module.__name__) is None:
                self._file(module, path)
        else:
            self._refer(owner, path)

    def _descriptor(self, value: Any, path: str) -> None:
        self._emit("descriptor", value.__qualname__)

    def _wrapper(self, value: Any, path: str) -> None:
        self._emit(type(value).__name__)
        self._refer(value.func if isinstance(value, cached_property) else value.__func__, path)

    def _method(self, value: types.MethodType, path: str) -> None:
        self._emit("method")
        self._refer(value.__func__, path)
        self._refer(value.__self__, path)

    def _property(self, value: property, path: str) -> None:
        self._emit("property")
        for function in (value.fget, value.fset, value.fdel):
            self._refer(function, path)

    # Objects

    def _scripted(self, value: Any, path: str) -> None:
        for name, each in value.named_modules() if isinstance(value, nn.Module) else [("", value)]:
            self._emit("script", name, getattr(each, "code", ""))
        self._refer(dict(value.state_dict()) if isinstance(value, nn.Module) else None, path)

    def _nn_module(self, value: nn.Module, path: str) -> None:
        if "_orig_mod" in value._modules:
            # A compiled module, which holds caches besides the module that it was made of.
            self._refer(value._modules["_orig_mod"], path)
            return
        self._emit("nn.Module")
        self._refer(type(value), path)
        for name, each in sorted(vars(value).items()):
            if self._counts(name, each):
                self._emit("attribute", name)
                # Hooks are numbered in the order in which any were registered in this process.
                self._refer([*each.values()] if name.endswith("_hooks") else each, f"{path}.{name}")

    def _member(self, value: Enum, path: str) -> None:
        self._emit("member", value.name)
        self._refer(type(value), path)
        self._refer(value.value, path)

    def _idle(self, value: Any, path: str) -> None:
        self._emit(type(value).__name__)

    def _cached(self, value: Any, path: str) -> None:
        # The results that it has stored depend on earlier calls, the next ones only on the function.
        self._refer(value.__wrapped__, path)

    def _weak(self, value: weakref.ref[Any], path: str) -> None:
        self._refer(value(), path)

    def _object(self, value: Any, path: str) -> None:
        """An object by its class and by the state that it would be pickled with."""
        self._emit("object")
        self._refer(type(value), path)
        try:
            registered = copyreg.dispatch_table.get(type(value))
            found = registered(value) if registered else value.__reduce_ex__(4)
            make, given, state, items, pairs = (
                (found, (), *(None,) * 3) if isinstance(found, str) else (*found, None, None, None)[:5]
            )
            parts = [make, given, items and [*items], pairs and [*pairs]]
        except Exception as error:
            self._unreadable(value, path, error)
            return
        for part in parts:
            self._refer(part, path)
        self._state(state, path)

    def _state(self, state: Any, path: str) -> None:
        plain, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        for attributes in (plain, slots):
            if not isinstance(attributes, dict):
                self._refer(attributes, path)
                continue
            for name, each in sorted(attributes.items(), key=lambda item: str(item[0])):
                if self._counts(name, each):
                    self._emit("attribute", name)
                    self._refer(each, f"{path}.{name}")

    def _counts(self, name: object, value: Any) -> bool:
        """Whether an attribute counts; of a data set those do not that look like caches, or change while it is read."""
        if not self.lenient:
            return True
        hidden = str(name).startswith("_") or "cache" in str(name)
        return not (hidden and isinstance(value, (dict, list, set, int, float, type(None))))


Describe = Callable[[Walk, Any, str], None]
_CONTAINERS: dict[type, Describe] = {
    **dict.fromkeys((list, tuple, deque), Walk._sequence),
    **dict.fromkeys((dict, OrderedDict, types.MappingProxyType), Walk._mapping),
    **dict.fromkeys((set, frozenset), Walk._set),
}
"""Containers themselves; those of a class of the user are objects with a state."""
