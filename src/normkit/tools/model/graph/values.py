"""The values of one run of a model: which call made each, from which others, and which calls read it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from normkit.tools.model.call import call_on_example
from normkit.tools.model.graph.recorder import (
    Arguments,
    Function,
    Recorder,
    kept_by_modules,
    name_of,
    tensors_held_by,
    tensors_in,
    versions,
)
from normkit.tools.model.graph.symbolic import METADATA
from normkit.tools.model.tree import has_hooks


@dataclass(eq=False)
class Value:
    """A tensor at one time: written in place, it becomes another value.

    Attributes:
        shape, dtype, device: its own.
        leaf: ``"parameter"``, ``"buffer"`` or ``"input"`` if no call made it; ``"unseen"`` if code made it that calls
            no function of torch, such as a scripted one; otherwise empty.
        tensor: the tensor itself, of a parameter or buffer; a copy, of integers.
        maker: the call that made it.
        readers: the calls that take it.
        seen_by: what else has it, in words: the caller of the model, hooks of a module, an attribute; empty for none.
        constant: whether it is computed from parameters and buffers alone.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    leaf: str = ""
    tensor: Tensor | None = field(default=None, repr=False)
    maker: Operation | None = None
    readers: list[Operation] = field(default_factory=list, repr=False)
    seen_by: str = ""
    constant: bool = False


@dataclass(eq=False)
class Operation:
    """A call of a function of torch, or of an atomic module.

    Attributes:
        name: of the function; empty for a module.
        module: the atomic module; for a function, the innermost module that called it.
        run: what was called; None for a write to the memory of a value through another tensor.
        given: its arguments, with a `Value` in place of each tensor.
        inputs: the values among these.
        outputs: what it made.
        writes: whether it wrote to an input: to the first one, if it returned no tensor.
    """

    name: str
    module: nn.Module
    run: Callable[..., Any] | None
    given: Any
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...] = ()
    writes: bool = False

    @property
    def atomic(self) -> bool:
        """Whether it is the call of a module."""
        return not self.name

    def repeated(self, given: Callable[[Value], Tensor]) -> list[Any]:
        """What it returns for other inputs: tensors and all else, in the order of its outputs."""
        assert self.run is not None

        def tensor(value: Value) -> Tensor:
            return given(value).clone() if self.writes else given(value)

        args, kwargs = tree_map_only(Value, tensor, self.given)
        leaves = tree_leaves(self.run(*args, **kwargs))
        return leaves if _tensors(leaves) or not self.writes else tree_leaves(args[0])


@dataclass
class ValueGraph:
    """All calls of one run.

    Attributes:
        calls: the calls of each atomic module.
        read: the parameters and buffers that were read.
        rounded: the resolution of the coarsest dtype that a value was cast to from a finer one.
        output: of the model.
    """

    calls: dict[nn.Module, list[Operation]]
    read: set[Tensor] = field(default_factory=set)
    rounded: float = 0.0
    output: Any = None


class _Values(Recorder):
    """Makes an operation of each call of an atomic module, and of each call of a function outside these."""

    def __init__(self, names: Mapping[nn.Module, str], atomic: Collection[nn.Module], example: Any) -> None:
        super().__init__()
        self.names = names
        # Asked before the recorder registers hooks of its own. The tools ask for those of norms themselves.
        self.with_hooks = {module for module in names if has_hooks(module) and module not in atomic}
        model = next(iter(names))
        self.graph = ValueGraph({module: [] for module in atomic})
        self.kinds = {id(tensor): "input" for tensor in tensors_in(example)}
        self.kinds |= {id(tensor): "buffer" for tensor in model.buffers()}
        self.kinds |= {id(tensor): "parameter" for tensor in model.parameters()}
        self.known: Any = WeakIdKeyDictionary()
        self.running = [model]
        self.versions: list[int] = []
        self.given: Any = None

    @property
    def inside(self) -> bool:
        return any(module in self.graph.calls for module in self.running)

    def before_function(self, func: Function, given: Arguments) -> None:
        if not self.inside:
            self.given, self.versions = self.described(given), versions(_tensors(given))

    def after_function(self, func: Function, given: Arguments, output: Any) -> None:
        name = name_of(func)
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        if name in METADATA:
            return
        if self.inside:
            self.note_rounding(given, output)
            return
        operation = Operation(name, self.running[-1], func, self.given, _values_in(self.given))
        constant = all(value.constant for value in operation.inputs)
        if not constant:
            self.note_rounding(given, output)
        operation.writes = self.versions != versions(_tensors(given))
        self.note(operation, given, output, constant)

    def before_module(self, module: nn.Module, given: Arguments) -> None:
        if module in self.graph.calls and not self.inside:
            self.given = self.described(given)
        if module in self.with_hooks and not self.inside:
            self.note_holder(f"the hooks of {self.names[module]!r}, which would see other values", _tensors(given))
        self.running.append(module)

    def after_module(self, module: nn.Module, given: Arguments, output: Any) -> None:
        self.running.pop()
        if module in self.graph.calls and not self.inside:
            operation = Operation("", module, module, self.given, _values_in(self.given))
            self.graph.calls[module].append(operation)
            self.note(operation, given, output)
        elif module in self.with_hooks and not self.inside:
            self.note_holder(f"the hooks of {self.names[module]!r}, which would see other values", _tensors(output))

    def note_holder(self, who: str, tensors: Iterable[Tensor]) -> None:
        """Code has these tensors without a call of a function."""
        for tensor in tensors:
            if tensor in self.known and (value := self.value(tensor)).leaf not in ("input", "unseen"):
                value.seen_by = who

    def described(self, given: Arguments) -> Any:
        """The arguments with a value in place of each tensor."""
        args, kwargs = given
        return tree_map_only(Tensor, self.value, (args, dict(kwargs)))

    def value(self, tensor: Tensor) -> Value:
        """What a tensor holds now."""
        (version,) = versions([tensor])
        if tensor in self.known:
            known: tuple[Value, int] = self.known[tensor]
            value, written = known
            if written == version:
                return value
            # Another tensor shares its memory, or code wrote to it that calls no function of torch.
            operation = Operation("write", self.running[-1], None, None, (value,))
            self.add(operation)
            return self.made(tensor, operation)
        value = _described(tensor, leaf=self.kinds.get(id(tensor), "unseen"))
        if value.leaf in ("parameter", "buffer"):
            value.tensor, value.constant = tensor, True
            self.graph.read.add(tensor)
        self.known[tensor] = value, version
        return value

    def made(self, tensor: Tensor, operation: Operation, constant: bool = False) -> Value:
        value = _described(tensor, maker=operation)
        value.constant = constant
        operation.outputs += (value,)
        self.known[tensor] = value, *versions([tensor])
        return value

    def add(self, operation: Operation) -> None:
        for value in dict.fromkeys(operation.inputs):
            value.readers.append(operation)

    def note(self, operation: Operation, given: Arguments, output: Any, constant: bool = False) -> None:
        ins, outs = _tensors(given), _tensors(output)
        if operation.writes and not outs:
            outs = ins[:1]
        elif outs and not operation.writes and all(any(out is tensor for tensor in ins) for out in outs):
            return  # It returned what it was given.
        self.add(operation)
        for out in outs:
            self.made(out, operation, constant)

    def note_rounding(self, given: Arguments, output: Any) -> None:
        before, after = (
            [torch.finfo(t.dtype).eps for t in _tensors(tree) if t.is_floating_point()] for tree in (given, output)
        )
        self.graph.rounded = max([self.graph.rounded, *(eps for eps in after if before and eps > min(before))])


def _described(tensor: Tensor, leaf: str = "", maker: Operation | None = None) -> Value:
    kept = None if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.detach().clone()
    return Value(tuple(tensor.shape), tensor.dtype, tensor.device, leaf, kept, maker)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _values_in(tree: Any) -> tuple[Value, ...]:
    return tuple(leaf for leaf in tree_leaves(tree) if isinstance(leaf, Value))


def record_values(
    model: nn.Module, atomic: Collection[nn.Module], example: Any, run: nn.Module | None = None
) -> ValueGraph:
    """Run a model once without gradients and record which call made each value and which calls read it.

    Args:
        model: in the mode that it is to be run in.
        atomic: modules whose call is one operation.
        example: a tensor, a tuple of positional or a mapping of keyword arguments.
        run: what is run in place of the model, such as its symbolic graph.

    Returns:
        The graph.
    """
    names = {module: name for name, module in model.named_modules()}
    recorder = _Values(names, atomic, example)
    with torch.compiler.set_stance("force_eager"):
        output = recorder.record(lambda: call_on_example(run or model, example), [*model.modules()])
    for module, key, tensor in kept_by_modules(model):
        name = names[module]
        recorder.note_holder(f"the attribute {f'{name}.{key}'.lstrip('.')!r}", [tensor])
    recorder.note_holder("the caller of the model", tensors_held_by(output))
    recorder.graph.output = output
    return recorder.graph
