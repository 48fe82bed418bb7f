"""Finds the streams of a model: the tensors that layer norms read, and all that must be centred together with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor, nn

from normkit.tools.model.graph.values import Operation, Value
from normkit.tools.model.info import NormInfo
from normkit.tools.model.refusal import RefusedError
from normkit.tools.model.tree import unusual
from normkit.tools.to_rms_norm.channels import Channels
from normkit.tools.to_rms_norm.trial import EmptyError, Trial

Owners = Mapping[Tensor, list[tuple[nn.Module, str]]]
"""The modules that hold each parameter and buffer, and under which key."""

T = TypeVar("T")


class TiedError(RefusedError):
    """A parameter is written into a stream, and a call that sees the mean of its channels reads it too.

    Args:
        text: says so.
        parameter: which one.
        reader: the module that reads it.
        kept: the names of the parameter in that module.
        others: its names in the other modules that hold it.
    """

    def __init__(self, text: str, parameter: Tensor, reader: nn.Module, kept: list[str], others: list[str]) -> None:
        self.parameter, self.reader = parameter, reader
        self.kept, self.others = kept, others if kept else []
        self.size = parameter.numel() * parameter.element_size()
        remedy = f"; untie=True gives {others[0]!r} a copy, of {self.size} bytes" if self.others else ""
        super().__init__(f"{text}{remedy}")


@dataclass(eq=False)
class Stream:
    """Tensors that can only be centred together.

    Attributes:
        members: each of them with the place of its channels.
        refusal: why they cannot be centred; None if they can.
    """

    members: dict[Value, Channels] = field(default_factory=dict)
    refusal: RefusedError | None = None

    @property
    def parameters(self) -> dict[Value, Channels]:
        """Those that are parameters or buffers: centring these centres all."""
        return {value: channels for value, channels in self.members.items() if value.leaf}


class Streams:
    """The streams of one recorded run.

    Args:
        names: of the modules of the model.
        norms: the layer norms that can lose their mean, and their descriptions.
        owners: of the parameters.
        reached: the parameters that were read.
    """

    def __init__(
        self,
        names: Mapping[nn.Module, str],
        norms: Mapping[nn.Module, NormInfo],
        owners: Owners,
        reached: Collection[Tensor],
    ) -> None:
        self.names, self.norms, self.owners, self.reached = names, norms, owners, reached
        self.known: dict[Value, Stream] = {}

    def read_by(self, call: Operation) -> Stream:
        """The stream that one call of a layer norm reads.

        Raises:
            RefusedError: it cannot be centred.
        """
        if len(call.inputs) != 1:
            raise RefusedError("it is called with more than its input")
        (value,) = call.inputs
        channels = self.channels_of(call.module, value)
        stream = self.known.get(value)
        if stream is None:
            stream = Stream()
            try:
                self.grow(stream, value, channels)
                self.check_neighbours(stream)
            except RefusedError as refusal:
                stream.refusal = refusal
        if stream.refusal is not None:
            raise stream.refusal
        if stream.members[value] != channels:
            raise RefusedError("the tensor that it reads has its channels elsewhere")
        return stream

    def channels_of(self, norm: nn.Module, value: Value) -> Channels:
        """The channels that a layer norm takes the mean of."""
        info = self.norms[norm]
        return Channels(info.channels, len(value.shape) - 1 if info.axis == "last" else 1)

    def grow(self, stream: Stream, start: Value, channels: Channels) -> None:
        """Add a tensor, and all that must be centred if it is."""
        waiting: deque[tuple[Value, Channels]] = deque([(start, channels)])
        done: dict[Operation, dict[Value, Channels]] = {}
        while waiting:
            value, channels = waiting.popleft()
            if value in stream.members:
                if stream.members[value] != channels:
                    raise RefusedError(f"{self.called(value)} would have to be centred in two ways")
                continue
            if (other := self.known.get(value)) is not None:
                # A refusal ends the growth of a stream, so that this is the rest of that one.
                raise other.refusal or RefusedError(f"{self.called(value)} would have to be centred in two ways")
            stream.members[value] = channels
            self.known[value] = stream
            if value.seen_by:
                raise RefusedError(f"{self.called(value)} also goes to {value.seen_by}")
            made = self.made(value, channels, done)
            waiting.extend(made.items())
            for reader in value.readers:
                if value not in done.get(reader, ()):
                    waiting.extend(self.read(value, channels, reader, done).items())

    def made(
        self, value: Value, channels: Channels, done: dict[Operation, dict[Value, Channels]]
    ) -> dict[Value, Channels]:
        """What must be centred, so that this tensor is."""
        operation = value.maker
        if operation is None:
            self.check_leaf(value)
            return {}
        if value in done.get(operation, ()):
            return {}
        found = self.tried(operation, lambda: Trial(operation).passed(value, channels))
        if found is None:
            raise RefusedError(f"its stream contains {self.called(value)}, and no weight there can be centred")
        done[operation] = found
        return found

    def read(
        self, value: Value, channels: Channels, reader: Operation, done: dict[Operation, dict[Value, Channels]]
    ) -> dict[Value, Channels]:
        """What must be centred, if a call gets this tensor centred; nothing, if the call does not see the mean."""
        alone = len(reader.inputs) == len(reader.outputs) == 1
        known = reader.atomic and alone and reader.module in self.norms
        if known and channels == self.channels_of(reader.module, value):
            return {}
        found = self.tried(reader, lambda: Trial(reader).assignment(value, channels))
        if found is not None:
            done[reader] = done.get(reader, {}) | found
            return found
        text = f"{self.called(value)} also goes to {self.reader(reader)}"
        if value.leaf == "parameter" and value.tensor is not None:
            names = [(module is reader.module, self.path(module, key)) for module, key in self.owners[value.tensor]]
            kept, others = ([name for inside, name in names if inside is wanted] for wanted in (True, False))
            raise TiedError(text, value.tensor, reader.module, kept, others)
        raise RefusedError(text)

    def tried(self, operation: Operation, trial: Callable[[], T]) -> T | None:
        """The result, or None where the call cannot be repeated with other numbers."""
        try:
            return trial()
        except EmptyError:
            raise RefusedError(f"the example gives an empty tensor to {self.reader(operation)}") from None
        except Exception:  # given random numbers, a function may raise anything
            return None

    def check_leaf(self, value: Value) -> None:
        """A tensor that no call made can be centred if it is a plain parameter, or a buffer in the state dict."""
        if value.leaf not in ("parameter", "buffer") or value.tensor is None:
            raise RefusedError(f"its stream contains {self.called(value)}, which cannot be centred")
        name = self.called(value)
        for module, key in self.owners[value.tensor]:
            if "parametrizations" in self.names[module].split("."):
                raise RefusedError(f"{name} is one of those that a weight is computed from: remove its parametrization")
            if key in module._non_persistent_buffers_set:
                raise RefusedError(f"{name} is a buffer that is not in the state dict")
            if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
                what = "a forward of its own" if "forward" in vars(module) else "hooks, which would see other values"
                raise RefusedError(f"{self.names[module]!r}, which has {name}, has {what}")
        if value.leaf == "parameter" and (what := unusual(value.tensor)):  # type: ignore[arg-type]
            raise RefusedError(f"{name} is {what}")

    def check_neighbours(self, stream: Stream) -> None:
        """All experts of a mixture must be seen: one that the example does not reach may write into the stream too."""
        writers = {module for v in stream.parameters if v.tensor is not None for module, _ in self.owners[v.tensor]}
        for parent in self.names:
            if not isinstance(parent, nn.ModuleList | nn.ModuleDict):
                continue
            if not any(module in writers for module in parent.modules()):
                continue
            for child in parent.children():
                parameters = [*child.parameters()]
                if parameters and not any(parameter in self.reached for parameter in parameters):
                    name = self.names[child]
                    raise RefusedError(f"the example does not reach {name!r}, which may write into its stream too")

    def called(self, value: Value) -> str:
        """A tensor in words: the name of a parameter, or what made it."""
        if value.leaf in ("parameter", "buffer") and value.tensor is not None:
            return repr(self.path(*self.owners[value.tensor][0]))
        if value.leaf == "input":
            return "the input of the model"
        if value.maker is None:
            return "a tensor that code made which calls no function of torch"
        if value.maker.run is None:
            return "a tensor that was written to through another one, such as a view"
        return f"the output of {self.reader(value.maker)}"

    def path(self, module: nn.Module, key: str) -> str:
        return f"{self.names[module]}.{key}".lstrip(".")

    def reader(self, operation: Operation) -> str:
        """A call in words."""
        place = self.names[operation.module]
        if operation.run is None:
            return "code that writes to it through another tensor, such as a view"
        if operation.atomic:
            return f"{place!r} ({type(operation.module).__name__})"
        return f"{operation.name}() in {place!r}" if place else f"{operation.name}()"
