"""Which module reads the output of which: recorded while a model runs on an example, and read from its graph."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from normkit.tools.model.call import arguments, call_on_example
from normkit.tools.model.graph.symbolic import symbolic_graph
from normkit.tools.model.tree import LAYERS

METADATA = {"size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "is_floating_point", "__len__"}
METADATA |= {"element_size", "get_device", "shape", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad"}
METADATA |= {"is_complex", "is_sparse", "is_quantized", "is_nested", "is_mkldnn", "is_meta", "is_cpu", "is_mps"}
METADATA |= {"grad_fn"}
"""Attributes of a tensor that do not depend on its values; folding changes none of them."""


@dataclass
class ModuleCall:
    """One execution of a watched module.

    Attributes:
        module: which one.
        args: its arguments, by position and by name.
        source: the call whose output was its input, if that was watched.
        consumers: who read its output: watched modules, or words for anything else.
        output: its output; it is kept, so that no other tensor takes its identity.
    """

    module: nn.Module
    args: tuple[tuple[Any, ...], dict[str, Any]]
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


class _Recorder(TorchFunctionMode):
    """Records every function of torch that is called, with its arguments."""

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

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        if name not in METADATA:
            inside = self.running[-1] if self.running else None
            for tensor in tensors_in((args, kwargs)):
                call = self.made.get(id(tensor))
                if call is not None and (inside is None or inside.input is not tensor):
                    call.consumers.append(f"{name}()")
                for owner in self.owners.get(id(tensor), ()):
                    if inside is None or inside.module is not owner:
                        self.reads[owner].add(f"{name}()")
        return func(*args, **kwargs or {})

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = ModuleCall(module, (args, kwargs))
        call.source = self.made.get(id(call.input))
        if call.source is not None:
            call.source.consumers.append(module)
        for other in tensors_in((args[1:], kwargs) if args else ()):
            if id(other) in self.made:
                self.made[id(other)].consumers.append("a further argument of a layer")
        self.calls[module].append(call)
        self.running.append(call)

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
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
    recorder = _Recorder(watched)
    with contextlib.ExitStack() as hooks:
        for module in watched:
            hooks.callback(module.register_forward_pre_hook(recorder.before, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(recorder.after).remove)
        asked = hooks.enter_context(_asked([m for m in watched if not isinstance(m, LAYERS)], recorder.running))
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), recorder:
            output = call_on_example(model, example)
    for tensor in tensors_in(output):
        if id(tensor) in recorder.made:
            recorder.made[id(tensor)].consumers.append("the caller of the model")
    return Dataflow(recorder.calls, recorder.reads, asked, output)


_EVERY_MODULE_HAS = {*dir(nn.Module), *vars(nn.Module())}


@contextlib.contextmanager
def _asked(modules: Collection[nn.Module], running: list[ModuleCall]) -> Iterator[dict[nn.Module, set[str]]]:
    """Which attributes of the modules are read while they are not running, other than what every module has."""
    asked: dict[nn.Module, set[str]] = {module: set() for module in modules}

    def watched(cls: Any) -> type:
        def read(self: nn.Module, name: str) -> Any:
            if name not in _EVERY_MODULE_HAS and all(call.module is not self for call in running):
                asked[self].add(name)
            return cls.__getattribute__(self, name)

        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__getattribute__": read}
        return type(cls.__name__, (cls,), names)

    classes = {module: type(module) for module in modules}
    reading = {cls: watched(cls) for cls in classes.values()}
    try:
        for module, cls in classes.items():
            module.__class__ = reading[cls]
        yield asked
    finally:
        for module, cls in classes.items():
            module.__class__ = cls


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            yield from tensors_in(getattr(value, entry.name, None))


class Graph:
    """The model's graph of symbolic tracing: the same for every input, where there is one."""

    def __init__(self, graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
        self.nodes: dict[nn.Module, list[fx.Node]] = {}
        self.reads: dict[nn.Module, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                self.nodes.setdefault(modules[str(node.target)], []).append(node)
            elif node.op == "get_attr" and (owner := modules.get(str(node.target).rpartition(".")[0])):
                self.reads.setdefault(owner, []).append(node)

    @staticmethod
    def of(model: nn.Module, leaves: Collection[nn.Module], example: Any) -> Graph | None:
        """The graph, or None where Python decides by what it computes; what the example leaves out has its default."""
        args, kwargs = arguments(example)

        def is_leaf(module: nn.Module) -> bool | None:
            return False if isinstance(module, nn.Identity) else module in leaves or None

        graph = symbolic_graph(model, is_leaf, args, kwargs)
        return None if graph is None else Graph(graph, dict(model.named_modules(remove_duplicate=False)))

    def joins(self, first: nn.Module, second: nn.Module) -> bool:
        """Whether only the second module reads the output of the first, and reads nothing else."""
        givers, takers = self.nodes.get(first, []), self.nodes.get(second, [])
        if not givers or not takers:
            return False
        users = [user for node in givers for user in node.users if not _is_metadata(user)]
        return all(user in takers for user in users) and all(node.all_input_nodes[0] in givers for node in takers)

    def reads_values(self, module: nn.Module) -> bool:
        """Whether anything but the module's own forward computes with its parameters."""
        return any(not _is_metadata(user) for node in self.reads.get(module, []) for user in node.users)


def _is_metadata(node: fx.Node) -> bool:
    target = node.args[1] if node.target is getattr else node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return node.op in ("call_method", "call_function") and name in METADATA
