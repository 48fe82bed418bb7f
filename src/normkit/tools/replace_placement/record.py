"""Records one run of a model: which function or norm made which tensor, and which expression of which method called it.

Python knows for every running call the place of its expression in the source. So a sum in the record can be found
again in the code of the module that computes it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from normkit.evaluation import preserving
from normkit.tools.model.call import call_on_example
from normkit.tools.model.graph.recorder import Arguments, Function, Recorder, name_of, tensors_in, versions

Place = tuple[int | None, int | None, int | None, int | None]
"""First line, last line, first column and last column of an expression."""

AS = {"expand_as", "view_as", "reshape_as", "type_as"}
LIKE = {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like"}
"""The functions that read shape and dtype of their last tensor, and not its values."""

SUMS = {"add", "add_", "__add__", "__radd__", "__iadd__"}


@dataclass(frozen=True, eq=False)
class Site:
    """One method that was running when something was called.

    Attributes:
        frame: number of this execution of the method.
        module, method: whose method, and its name.
        code: its code.
        place: the expression that was being evaluated.
        names: its local variables that are tensors, with the numbers of their values.
    """

    frame: int
    module: nn.Module
    method: str
    code: CodeType
    place: Place
    names: Mapping[str, int]

    @property
    def expression(self) -> tuple[nn.Module, CodeType, Place]:
        """Equal for all evaluations of one expression for one module."""
        return self.module, self.code, self.place


@dataclass(frozen=True, eq=False)
class Event:
    """One call of a function of torch, or of a norm.

    Attributes:
        index: position in the order of calls.
        name: of the function, or "norm".
        module: the norm; None for a function.
        inputs: numbers of the values of its input tensors; None for a parameter, and for what is computed from
            parameters alone.
        parameters: its inputs that are parameters.
        outputs: numbers of the values that it made.
        sites: the methods that were running, the outermost first.
        sizes: for a sum, root mean squares of both operands and of the sum; for a norm, of its output.
    """

    index: int
    name: str
    module: nn.Module | None
    inputs: tuple[int | None, ...]
    parameters: tuple[nn.Parameter, ...]
    outputs: tuple[int, ...]
    sites: tuple[Site, ...]
    sizes: tuple[float, ...] = ()

    @property
    def norm(self) -> nn.Module:
        """The norm that was called."""
        assert self.module is not None
        return self.module

    @property
    def values(self) -> list[int]:
        """The values that it reads and that are not computed from parameters alone."""
        return [value for value in self.inputs if value is not None]


@dataclass(frozen=True, eq=False)
class Pass:
    """A module, or a function if there is none, that returned the tensor that it got, as dropout in evaluation."""

    module: nn.Module | None
    value: int
    sites: tuple[Site, ...]


@dataclass
class Record:
    """All events of one run."""

    events: list[Event] = field(default_factory=list)
    makers: dict[int, Event] = field(default_factory=dict)
    readers: dict[int, list[Event]] = field(default_factory=dict)
    passes: list[Pass] = field(default_factory=list)
    returned: set[int] = field(default_factory=set)


OnSum = Callable[[int, Tensor, Tensor], None]
"""Gets the number of a sum among the events, and both operands, before they are added."""


class _EventRecorder(Recorder):
    """Makes an event of each call of a norm, and of each function outside of norms."""

    def __init__(self, model: nn.Module, norms: Collection[nn.Module], on_sum: OnSum | None) -> None:
        super().__init__()
        self.norms, self.on_sum = norms, on_sum
        self.result = Record()
        self.methods = _methods(model)
        self.numbers: Any = WeakIdKeyDictionary()
        self.count = 0  # numbers begin with 1
        self.constants: set[int] = set()
        self.inside = 0
        self.frames: dict[FrameType, int] = {}
        self.places: dict[CodeType, list[Place]] = {}
        self.versions: list[int] = []
        self.sizes: tuple[float, ...] = ()

    def number(self, tensor: Tensor) -> int:
        """The number of the value that a tensor has now."""
        if tensor not in self.numbers:
            self.renew(tensor)
        found: int = self.numbers[tensor]
        return found

    def renew(self, tensor: Tensor) -> int:
        self.count += 1
        self.numbers[tensor] = self.count
        if isinstance(tensor, nn.Parameter):
            self.constants.add(self.count)
        return self.count

    def sites(self) -> tuple[Site, ...]:
        """The methods of modules that are running."""
        frame: FrameType | None = sys._getframe(1)
        found = []
        while frame is not None:
            code = frame.f_code
            if code in self.methods:
                if code not in self.places:
                    self.places[code] = list(code.co_positions())
                variables = frame.f_locals
                names = {
                    name: self.numbers[value]
                    for name, value in variables.items()
                    if isinstance(value, Tensor) and value in self.numbers
                }
                module = variables.get(code.co_varnames[0])
                if isinstance(module, nn.Module):
                    serial = self.frames.setdefault(frame, len(self.frames))
                    place = self.places[code][frame.f_lasti // 2]
                    found.append(Site(serial, module, self.methods[code], code, place, names))
            frame = frame.f_back
        return tuple(reversed(found))

    def before_function(self, func: Function, given: Arguments) -> None:
        if self.inside:
            return
        tensors = list(tensors_in(given))
        for tensor in tensors:
            self.number(tensor)
        self.sizes = ()
        if name_of(func) in SUMS and len(tensors) == 2 and tensors[0].shape == tensors[1].shape:
            if self.on_sum is not None:
                self.on_sum(len(self.result.events), *tensors)
            if tensors[0].is_floating_point():
                self.sizes = (root_mean_square(tensors[0]), root_mean_square(tensors[1]))
        self.versions = versions(tensors)

    def after_function(self, func: Function, given: Arguments, output: Any) -> None:
        if self.inside:
            return
        name, tensors = name_of(func), list(tensors_in(given))
        outputs = [given[0][0]] if name == "__setitem__" else list(tensors_in(output))
        written = versions(tensors) != self.versions
        if len(outputs) == 1 and not written and any(outputs[0] is tensor for tensor in tensors):
            self.result.passes.append(Pass(None, self.number(outputs[0]), self.sites()))
        elif outputs:
            sizes = (*self.sizes, root_mean_square(outputs[0])) if self.sizes else ()
            self.note(name, None, tensors, outputs, sizes)

    def before_module(self, module: nn.Module, given: Arguments) -> None:
        if module in self.norms:
            for tensor in tensors_in(given) if not self.inside else ():
                self.number(tensor)
            self.inside += 1

    def after_module(self, module: nn.Module, given: Arguments, output: Any) -> None:
        tensors, outputs = list(tensors_in(given)), list(tensors_in(output))
        if module in self.norms:
            sizes = tuple(root_mean_square(tensor) for tensor in outputs[:1])
            self.inside -= 1
            if not self.inside:
                self.note("norm", module, tensors, outputs, sizes)
        elif not self.inside and outputs and any(outputs[0] is tensor for tensor in tensors):
            self.result.passes.append(Pass(module, self.number(outputs[0]), self.sites()))

    def note(
        self,
        name: str,
        module: nn.Module | None,
        tensors: list[Tensor],
        outputs: list[Tensor],
        sizes: tuple[float, ...],
    ) -> None:
        """Add an event, after its call."""
        sites = self.sites()
        tensors = tensors[:-1] if name in AS | LIKE else tensors
        inputs = tuple(None if self.number(each) in self.constants else self.number(each) for each in tensors)
        parameters = tuple(tensor for tensor in tensors if isinstance(tensor, nn.Parameter))
        made = tuple(self.renew(output) for output in outputs)
        if inputs and not any(inputs):
            self.constants.update(made)
        event = Event(len(self.result.events), name, module, inputs, parameters, made, sites, sizes)
        self.result.events.append(event)
        for value in made:
            self.result.makers[value] = event
        for value in dict.fromkeys(event.values):
            self.result.readers.setdefault(value, []).append(event)


def root_mean_square(x: Tensor) -> float:
    """Over all elements, in float64."""
    return x.detach().double().square().mean().sqrt().item()


def _methods(model: nn.Module) -> dict[CodeType, str]:
    """The code of each method that a module of the model has, with the name of the method."""
    found: dict[CodeType, str] = {}
    for cls in {cls for module in model.modules() for cls in type(module).__mro__} - {*nn.Module.__mro__}:
        for name, value in vars(cls).items():
            code = getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None
            if isinstance(code, CodeType) and code.co_argcount:
                found[code] = name
    return found


def watched_modules(model: nn.Module, norms: Collection[nn.Module]) -> Iterator[nn.Module]:
    """The norms, and the modules that may return their input: without children and parameters."""
    for module in model.modules():
        if module in norms or not (module._modules or module._parameters):
            yield module


def record(
    model: nn.Module,
    norms: Collection[nn.Module],
    example: Any,
    on_sum: OnSum | None = None,
    training_seed: int | None = None,
) -> Record:
    """Run a model once on an example, in evaluation or, if a seed is given, in training mode.

    Args:
        model: left as it was: modes, buffers and random generators are restored.
        norms: single steps of the record.
        example: a tensor, a tuple of positional or a mapping of keyword arguments.
        on_sum: called before two tensors of one shape are added.
        training_seed: of the run in training mode.

    Returns:
        The `Record`.
    """
    recorder = _EventRecorder(model, norms, on_sum)
    # Its import takes seconds, and nothing is compiled where it is not imported.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with preserving(model), eager:
        model.train(training_seed is not None)
        if training_seed is not None:
            torch.manual_seed(training_seed)
        try:
            output = recorder.record(lambda: call_on_example(model, example), [*watched_modules(model, norms)])
        finally:
            recorder.frames.clear()  # they hold all tensors of the run, and the recorder
    recorder.result.returned = {recorder.numbers[tensor] for tensor in tensors_in(output) if tensor in recorder.numbers}
    return recorder.result
