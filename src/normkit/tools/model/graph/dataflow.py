"""Who reads the output of each layer and norm, recorded while a model runs on an example.

The output of a norm can be followed through functions that only move values. Each of its elements gets the number of
the feature that it belongs to, and the same functions are applied to these numbers. So at any layer that reads the
output, in whatever shape, it is known which feature each element is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from normkit.tools.model.call import call_on_example
from normkit.tools.model.graph.call_graph import MOVES
from normkit.tools.model.graph.recorder import (
    Arguments,
    Function,
    Recorder,
    kept_by_modules,
    name_of,
    tensors_held_by,
    tensors_in,
)
from normkit.tools.model.graph.symbolic import VALUE_FREE
from normkit.tools.model.refusal import RefusedError
from normkit.tools.model.tree import LAYERS, Layer, has_hooks

DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
"""In evaluation they return their input."""

CASTS = {"to", "float", "half", "bfloat16", "double", "type", "type_as", "contiguous", "clone", "detach"}
"""Functions that keep every element at its place."""

MOVING = (MOVES - {"__get__"}) | CASTS | DROPOUTS | {"__getitem__", "index_select", "narrow", "select", "unbind", "pad"}
MOVING |= {"split", "chunk", "roll", "flip", "expand", "expand_as", "repeat", "moveaxis", "swapdims", "ravel", "t", "T"}
MOVING |= {"mT", "data"}
"""Functions that only move values, put zeros between them, leave some out or repeat them."""

SHAPES_ALONE = {"view_as", "type_as", "expand_as"}
"""Of these, only the shape or dtype of their second argument is used."""

Features = Callable[[Tensor], Tensor]
"""Gives each element of a norm's output the number of its feature, from 1."""


@dataclass
class ModuleCall:
    """One execution of a watched module.

    Attributes:
        module: which one.
        args: its arguments, by position and by name.
        source: the call whose output was its input, if that was watched.
        consumers: who read its output: watched modules, or text for anything else.
        output: its output; it is kept, so that no other tensor takes its identity.
        features: for each element of its first input, the number of the feature of the norm that it comes from, and 0
            for zeros put between; None if that was not followed.
        padded: whether a function between that norm and it puts zeros there, perhaps none in this run.
        moved: what functions that move values made of its output; kept for the same reason.
    """

    module: nn.Module
    args: Arguments
    source: ModuleCall | None = None
    consumers: list[nn.Module | str] = field(default_factory=list)
    output: Any = None
    features: Tensor | None = field(default=None, repr=False)
    padded: bool = False
    moved: list[Tensor] = field(default_factory=list, repr=False)

    @property
    def input(self) -> Any:
        """The first argument."""
        args, kwargs = self.args
        return args[0] if args else next(iter(kwargs.values()), None)


@dataclass
class Dataflow:
    """The calls of the watched modules in one run of the model, and who reads them."""

    calls: dict[nn.Module, list[ModuleCall]]
    reads: dict[nn.Module, set[str]]
    """For each module, who else reads its parameters."""
    shared: dict[nn.Module, set[str]]
    """Those among them that read it as a parameter of another module."""
    asked: dict[nn.Module, set[str]]
    """For each module that is not a layer, the attributes of it that other code reads."""
    output: Any


class _Readers(Recorder):
    """Notes who made and who reads the outputs and the parameters of the watched modules."""

    def __init__(
        self,
        watched: Collection[nn.Module],
        features: Mapping[nn.Module, Features],
        through: Collection[nn.Module],
        constant: Collection[int],
    ) -> None:
        super().__init__()
        self.features, self.through, self.constant = features, through, constant
        self.calls: dict[nn.Module, list[ModuleCall]] = {module: [] for module in watched}
        self.reads: dict[nn.Module, set[str]] = {module: set() for module in watched}
        self.shared: dict[nn.Module, set[str]] = {module: set() for module in watched}
        self.owners: dict[int, list[nn.Module]] = {}
        for module in watched:
            for parameter in module.parameters(recurse=False):
                self.owners.setdefault(id(parameter), []).append(module)
        self.made: dict[int, ModuleCall] = {}
        self.numbers: dict[int, Tensor] = {}
        self.padded: set[int] = set()
        self.running: list[ModuleCall] = []
        self.within: list[tuple[str, nn.Module]] = []

    def before_function(self, func: Function, given: Arguments) -> None:
        name = _name(func)
        if name in VALUE_FREE:
            return
        inside = self.running[-1] if self.running else None
        for tensor in tensors_in(given):
            call = self.made.get(id(tensor))
            if call is None or (inside is not None and inside.input is tensor):
                continue
            if not (inside is None and name in MOVING and call.module in self.through):
                call.consumers.append(self.described(name, call))
        for tensor in tensors_in(given):
            for owner in self.owners.get(id(tensor), ()):
                if inside is None or inside.module is not owner:
                    self.reads[owner].add(f"{name}()")
                    if self.within and any(p is tensor for p in self.within[-1][1]._parameters.values()):
                        self.shared[owner].add(f"{name}()")

    def described(self, name: str, call: ModuleCall) -> str:
        """A function, and of norms that are followed also the module whose forward calls it."""
        where = self.within[-1][0] if self.within and call.module in self.through else ""
        return f"{name}() in {where!r}" if where else f"{name}()"

    def after_function(self, func: Function, given: Arguments, output: Any) -> None:
        name = _name(func)
        if self.running or name not in MOVING:
            return
        for index, tensor in enumerate(tensors_in(given)):
            call = self.made.get(id(tensor))
            if call is None or call.module not in self.through or (index and name in SHAPES_ALONE):
                continue
            found = None
            if given[0] and tensor is given[0][0]:
                numbers = self.numbers[id(tensor)]
                found = _moved(name, func, given, output, numbers)
                if found and not _same_for_other_indices(name, func, given, numbers, self.constant):
                    call.consumers.append(f"{self.described(name, call)}, with indices that are computed")
            if found is None:
                call.consumers.append(self.described(name, call))
            for out, numbers in found or ():
                call.moved.append(out)
                self.made[id(out)], self.numbers[id(out)] = call, numbers
                if name == "pad" or id(tensor) in self.padded:
                    self.padded.add(id(out))

    def seen_by(self, who: str, tensors: Iterable[Tensor]) -> None:
        """Note code that has these tensors without a call of a function."""
        for call in {id(call): call for tensor in tensors if (call := self.made.get(id(tensor)))}.values():
            call.consumers.append(who)

    def before_module(self, module: nn.Module, given: Arguments) -> None:
        call = ModuleCall(module, given)
        call.source = self.made.get(id(call.input))
        if call.source is not None:
            call.source.consumers.append(module)
            call.features = self.numbers.get(id(call.input))
            call.padded = id(call.input) in self.padded
        args, kwargs = given
        for other in tensors_in((args[1:], kwargs) if args else ()):
            if id(other) in self.made:
                self.made[id(other)].consumers.append("a further argument of a layer")
        self.calls[module].append(call)
        self.running.append(call)

    def after_module(self, module: nn.Module, given: Arguments, output: Any) -> None:
        call = self.running[-1]
        call.output = output
        # A module that returns its input did not create that tensor.
        if isinstance(output, Tensor) and output is not call.input:
            self.made[id(output)] = call
            if module in self.features:
                self.numbers[id(output)] = self.features[module](output)
        self.running.pop()


def _name(func: Function) -> str:
    """The name of a function, or of the attribute that it reads."""
    name = name_of(func)
    return getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name


def _moved(
    name: str, func: Function, given: Arguments, output: Any, numbers: Tensor
) -> list[tuple[Tensor, Tensor]] | None:
    """The new tensors that a function has made of its first argument, and their numbers; None if it did not move it."""
    args, kwargs = given
    outs = [*tensors_in(output)]
    if not outs or any(out is args[0] for out in outs):
        return []
    if name in DROPOUTS or (name == "pad" and not _pads_with_zeros(*args[2:], **kwargs)):
        return None
    if name in CASTS:
        made = [numbers.to(outs[0].device)]
    else:
        try:
            # A view of the output may be none of the numbers, which were expanded and never copied.
            numbers = numbers.contiguous() if "view" in name else numbers
            made = [*tensors_in(func(numbers, *args[1:], **kwargs))]
        except Exception:  # not for integers
            return None
    same = [out.shape for out in outs] == [each.shape for each in made]
    kept = all(out.is_floating_point() and each.dtype == numbers.dtype for out, each in zip(outs, made, strict=False))
    return [*zip(outs, made, strict=True)] if same and kept else None


def _same_for_other_indices(
    name: str, func: Function, given: Arguments, numbers: Tensor, constant: Collection[int]
) -> bool:
    """Whether the features stay at their places when tensors that choose elements have other values.

    Args:
        name, func, given: a call.
        numbers: of the features of its first argument.
        constant: the identities of the tensors that are the same for every input of the model.
    """
    if name not in ("__getitem__", "index_select"):
        return True
    args, kwargs = given
    index = args[1:] if name == "__getitem__" else (*args[1:], *kwargs.values())
    flat = [*tree_leaves(index)]
    computed = [item for item in flat if isinstance(item, Tensor) and id(item) not in constant]
    if any(isinstance(end, Tensor) for item in flat if isinstance(item, slice) for end in (item.start, item.stop)):
        return False
    if not computed:
        return True
    last = -1 if name == "__getitem__" else numbers.size(next(item for item in flat if isinstance(item, int))) - 1

    def other(tensor: Tensor, value: int) -> Tensor:
        if id(tensor) in constant:
            return tensor
        # A mask chooses as many elements as before.
        return tensor.roll(value + 1) if tensor.dtype == torch.bool else torch.full_like(tensor, value)

    made = []
    for value in (0, last):
        more, named = tree_map_only(Tensor, partial(other, value=value), (args[1:], dict(kwargs)))
        try:
            made.append(func(numbers, *more, **named))
        except Exception:  # an index may be valid only with other values
            return False
    return torch.equal(made[0], made[1])


def _pads_with_zeros(mode: str = "constant", value: float | None = None, **_: Any) -> bool:
    return mode == "constant" and not value


def record(
    model: nn.Module,
    watched: Collection[nn.Module],
    example: Any,
    features: Mapping[nn.Module, Features] = MappingProxyType({}),
    through: Collection[nn.Module] = (),
) -> Dataflow:
    """Run the model once and record who reads the outputs of the watched modules, and who reads their parameters.

    Args:
        model: runs without gradients, in the mode it is in.
        watched: modules of the model that call no other watched module.
        example: the input: a tensor, a tuple of positional or a mapping of keyword arguments.
        features: of norms whose features are numbered.
        through: those of these norms whose output is followed through functions that only move values.

    Returns:
        The `Dataflow`.
    """
    readers = _Readers(watched, features, through, {id(tensor) for tensor in (*model.parameters(), *model.buffers())})
    norms = [module for module in watched if not isinstance(module, LAYERS)]
    with (
        _attribute_readers(norms, readers.running) as asked,
        _noting_modules(model, readers),
        torch.compiler.set_stance("force_eager"),
    ):
        output = readers.record(lambda: call_on_example(model, example), watched)
    readers.seen_by("the caller of the model", tensors_held_by(output))
    names = {module: name for name, module in model.named_modules()}
    for module, key, tensor in kept_by_modules(model):
        readers.seen_by(f"the attribute {f'{names[module]}.{key}'.lstrip('.')!r}", [tensor])
    return Dataflow(readers.calls, readers.reads, readers.shared, asked, output)


@contextlib.contextmanager
def _noting_modules(model: nn.Module, readers: _Readers) -> Iterator[None]:
    """Keeps the modules that are running, with their names, the innermost last; and what their hooks get."""
    names = {module: name for name, module in model.named_modules() if not isinstance(module, torch.jit.ScriptModule)}
    # The tools ask themselves for the hooks of norms and layers.
    with_hooks = {module for module in names if has_hooks(module) and module not in readers.calls}

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        readers.within.append((names[module], module))
        if module in with_hooks:
            readers.seen_by(f"the hooks of {names[module]!r}, which would see other values", tensors_in((args, kwargs)))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        readers.within.pop()
        if module in with_hooks:
            readers.seen_by(f"the hooks of {names[module]!r}, which would see other values", tensors_in(output))

    with ExitStack() as stack:
        for module in names:
            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield


def layer_before(calls: Sequence[ModuleCall], names: Mapping[nn.Module, str]) -> Layer:
    """The one convolution or linear layer that makes the input of all calls of a norm.

    Raises:
        RefusedError: there is none.
    """
    sources = {call.source.module if call.source else None for call in calls}
    layer = next(iter(sources))
    if layer is None or len(sources) > 1:
        raise RefusedError("its input does not come straight from one convolution or linear layer")
    if not isinstance(layer, LAYERS):
        raise RefusedError(f"its input comes from {names[layer]!r}, a {type(layer).__name__}")
    return layer


_EVERY_MODULE_HAS = {*dir(nn.Module), *vars(nn.Module())}


@contextlib.contextmanager
def _attribute_readers(
    modules: Collection[nn.Module], running: list[ModuleCall]
) -> Iterator[dict[nn.Module, set[str]]]:
    """Which attributes of the modules are read while they are not running, other than what every module has.

    Reading an attribute calls no hook, so each module has a subclass of its class meanwhile, which notes the reading.
    """
    asked: dict[nn.Module, set[str]] = {module: set() for module in modules}

    def noting(cls: Any) -> type:
        def read(self: nn.Module, name: str) -> Any:
            if name not in _EVERY_MODULE_HAS and all(call.module is not self for call in running):
                asked[self].add(name)
            return cls.__getattribute__(self, name)

        # Under the name of its base, which some forwards ask for.
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__getattribute__": read}
        return type(cls.__name__, (cls,), names)

    classes = {module: type(module) for module in modules}
    subclasses = {cls: noting(cls) for cls in classes.values()}
    try:
        for module, cls in classes.items():
            module.__class__ = subclasses[cls]
        yield asked
    finally:
        for module, cls in classes.items():
            module.__class__ = cls
