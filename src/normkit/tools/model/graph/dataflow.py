"""Who reads the output of each layer and norm, recorded while a model runs on an example."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normkit.tools.model.call import call_on_example
from normkit.tools.model.graph.recorder import Arguments, Function, Recorder, name_of, tensors_in
from normkit.tools.model.graph.symbolic import METADATA
from normkit.tools.model.tree import LAYERS


@dataclass
class ModuleCall:
    """One execution of a watched module.

    Attributes:
        module: which one.
        args: its arguments, by position and by name.
        source: the call whose output was its input, if that was watched.
        consumers: who read its output: watched modules, or text for anything else.
        output: its output; it is kept, so that no other tensor takes its identity.
    """

    module: nn.Module
    args: Arguments
    source: ModuleCall | None = None
    consumers: list[nn.Module | str] = field(default_factory=list)
    output: Any = None

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
    asked: dict[nn.Module, set[str]]
    """For each module that is not a layer, the attributes of it that other code reads."""
    output: Any


class _Readers(Recorder):
    """Notes who made and who reads the outputs and the parameters of the watched modules."""

    def __init__(self, watched: Collection[nn.Module]) -> None:
        super().__init__()
        self.calls: dict[nn.Module, list[ModuleCall]] = {module: [] for module in watched}
        self.reads: dict[nn.Module, set[str]] = {module: set() for module in watched}
        self.owners: dict[int, list[nn.Module]] = {}
        for module in watched:
            for parameter in module.parameters(recurse=False):
                self.owners.setdefault(id(parameter), []).append(module)
        self.made: dict[int, ModuleCall] = {}
        self.running: list[ModuleCall] = []

    def before_function(self, func: Function, given: Arguments) -> None:
        name = name_of(func)
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        if name in METADATA:
            return
        inside = self.running[-1] if self.running else None
        for tensor in tensors_in(given):
            call = self.made.get(id(tensor))
            if call is not None and (inside is None or inside.input is not tensor):
                call.consumers.append(f"{name}()")
            for owner in self.owners.get(id(tensor), ()):
                if inside is None or inside.module is not owner:
                    self.reads[owner].add(f"{name}()")

    def before_module(self, module: nn.Module, given: Arguments) -> None:
        call = ModuleCall(module, given)
        call.source = self.made.get(id(call.input))
        if call.source is not None:
            call.source.consumers.append(module)
        args, kwargs = given
        for other in tensors_in((args[1:], kwargs) if args else ()):
            if id(other) in self.made:
                self.made[id(other)].consumers.append("a further argument of a layer")
        self.calls[module].append(call)
        self.running.append(call)

    def after_module(self, module: nn.Module, given: Arguments, output: Any) -> None:
        call = self.running.pop()
        call.output = output
        # A module that returns its input did not create that tensor.
        if isinstance(output, Tensor) and output is not call.input:
            self.made[id(output)] = call


def record(model: nn.Module, watched: Collection[nn.Module], example: Any) -> Dataflow:
    """Run the model once and record who reads the outputs of the watched modules, and who reads their parameters.

    Args:
        model: runs without gradients, in the mode it is in.
        watched: modules of the model that call no other watched module.
        example: the input: a tensor, a tuple of positional or a mapping of keyword arguments.

    Returns:
        The `Dataflow`.
    """
    readers = _Readers(watched)
    norms = [module for module in watched if not isinstance(module, LAYERS)]
    with _attribute_readers(norms, readers.running) as asked, torch.compiler.set_stance("force_eager"):
        output = readers.record(lambda: call_on_example(model, example), watched)
    for tensor in tensors_in(output):
        if id(tensor) in readers.made:
            readers.made[id(tensor)].consumers.append("the caller of the model")
    return Dataflow(readers.calls, readers.reads, asked, output)


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
