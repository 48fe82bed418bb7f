"""All calls of one run of a model: of its innermost modules and of functions between, and who reads their outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from normkit.tools.model.graph.recorder import Arguments, Function, Recorder, name_of, versions

MOVES = {"view", "reshape", "flatten", "unflatten", "transpose", "permute", "contiguous", "squeeze", "unsqueeze", "to"}
MOVES |= {"__get__", "float", "half", "bfloat16", "type", "type_as", "clone", "movedim", "swapaxes", "view_as"}
"""Operations that move values or change their dtype and do nothing else."""

TURNS = {"__get__", "transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims"}
"""The operations that change the order of the elements; the others keep it."""

LINEAR = (_ConvNd, nn.Linear)

Look = Callable[[nn.Module, Tensor, bool], None]
"""Gets a norm, its input, and whether a mask says which positions of that are padding."""


@dataclass(frozen=True)
class Node:
    """One call of a module that has nothing inside, of a norm, or of a function of torch between them.

    Attributes:
        index: position in the order of the calls.
        module: what was called; None for a function.
        name: dotted name of the module, or name of the function.
        inputs: nodes that made its tensors; -1 for what comes from outside or from parameters.
        shapes: of its input tensors.
        same: it returned the very tensor that it was given, with the values that it had.
        noisy: in training it returns another one, as dropout and stochastic depth do.
        dropout: probability, for a call of torch's dropout functions.
        channels: for each element of its first input, which channel of a convolution or linear layer it comes from;
            None where it is not the output of one, unchanged or reordered.
        made: shapes of the tensors that it returned.
        turn: for what changes the order of dimensions, which one of its input is at each place of its output.
    """

    index: int
    module: nn.Module | None
    name: str
    inputs: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    same: bool
    noisy: bool = False
    dropout: float = 0.0
    channels: Tensor | None = field(default=None, repr=False, compare=False)
    made: tuple[tuple[int, ...], ...] = ()
    turn: tuple[int, ...] | None = None


@dataclass
class CallGraph:
    """All calls of one run, in order."""

    nodes: list[Node] = field(default_factory=list)
    consumers: dict[int, list[int]] = field(default_factory=dict)

    def add(self, node: Node) -> None:
        """Append a call."""
        self.nodes.append(node)
        for index in set(node.inputs):
            self.consumers.setdefault(index, []).append(node.index)

    def calls(self, module: nn.Module) -> list[Node]:
        """The calls of one module."""
        return [node for node in self.nodes if node.module is module]

    def alone_before(self, node: Node, moves: bool = True) -> Node | None:
        """The node whose output only this one reads, as its first input; with `moves`, views between are skipped."""
        while node.inputs and node.inputs[0] >= 0:
            node, after = self.nodes[node.inputs[0]], node
            if [*self.consumers.get(node.index, ())] != [after.index]:
                return None
            if not (moves and moves_only(node)):
                return node
        return None

    def sources(self, starts: Collection[int]) -> set[int]:
        """The nodes that the values of these nodes come from, themselves among them."""
        return _reached(starts, lambda index: self.nodes[index].inputs)

    def users(self, starts: Collection[int]) -> set[int]:
        """The nodes that the values of these nodes reach, themselves among them."""
        return _reached(starts, lambda index: self.consumers.get(index, ()))

    def mark_output(self, index: int) -> None:
        """The model returns a tensor of this node, so that the caller reads it."""
        self.consumers.setdefault(index, []).append(-1)


def _reached(starts: Collection[int], following: Callable[[int], Collection[int]]) -> set[int]:
    found, waiting = set(starts), [*starts]
    while waiting:
        new = {index for index in following(waiting.pop()) if index >= 0} - found
        found |= new
        waiting += new
    return found


def moves_only(node: Node) -> bool:
    """Whether a call returns its values unchanged, at other places perhaps."""
    if node.module is None:
        return node.name in MOVES
    return isinstance(node.module, nn.Identity | nn.Flatten | nn.Unflatten) or (
        node.same and not node.noisy and not node.module._parameters
    )


def is_dropout(node: Node) -> bool:
    """Whether a call drops values in training."""
    if node.module is None:
        return node.dropout > 0
    return isinstance(node.module, nn.modules.dropout._DropoutNd) and node.module.p > 0


class _CallRecorder(Recorder):
    """Makes a node of each call of a watched module, and of each call of a function outside these."""

    def __init__(self, names: Mapping[nn.Module, str], norms: Collection[nn.Module], look: Look) -> None:
        super().__init__()
        self.names, self.norms, self.look = names, norms, look
        self.graph = CallGraph()
        self.makers: Any = WeakIdKeyDictionary()
        self.channels: Any = WeakIdKeyDictionary()
        self.depth = 0
        self.versions: list[int] = []

    def before_function(self, func: Function, given: Arguments) -> None:
        if self.depth == 0:
            self.versions = versions(_tensors(given))

    def after_function(self, func: Function, given: Arguments, output: Any) -> None:
        if self.depth == 0:
            name = name_of(func)
            self.note(None, name, given, given[0][0] if name == "__setitem__" else output, func)

    def before_module(self, module: nn.Module, given: Arguments) -> None:
        self.depth += 1
        if self.depth > 1:
            return
        tensors = _tensors(given)
        self.versions = versions(tensors)
        if tensors and module in self.norms:
            self.look(module, tensors[0], given[1].get("mask") is not None)

    def after_module(self, module: nn.Module, given: Arguments, output: Any) -> None:
        if self.depth == 1:
            self.note(module, self.names[module], given, output)
        self.depth -= 1

    def note(
        self, module: nn.Module | None, name: str, given: Arguments, made: Any, func: Function | None = None
    ) -> None:
        """Add a node, if the call made tensors."""
        ins, outs = _tensors(given), _tensors(made)
        if not outs:
            return
        known = [tensor for tensor in ins if module is None or not isinstance(tensor, nn.Parameter)]
        same = self.versions == versions(ins) and _returns_input(ins, outs)
        node = Node(
            len(self.graph.nodes),
            module,
            name,
            tuple(self.makers.get(tensor, -1) for tensor in known),
            tuple(tuple(tensor.shape) for tensor in known),
            same,
            same and module is not None and not _returns_input_in_training(module, given),
            _rate(*given) if module is None and "dropout" in name else 0.0,
            self.channels.get(known[0]) if known else None,
            tuple(tuple(out.shape) for out in outs),
            _turn(func, *given) if func is not None and name in TURNS else None,
        )
        self.graph.add(node)
        for out in outs:
            self.makers[out] = node.index
            self.channels[out] = _channels(node, out, given, func)


def _returns_input(ins: list[Tensor], outs: list[Tensor]) -> bool:
    return any(out is tensor for out in outs for tensor in ins)


def _returns_input_in_training(module: nn.Module, given: Arguments) -> bool:
    """Tried on copies: the module and the tensors stay as they are."""
    args, kwargs = tree_map_only(Tensor, Tensor.clone, given)
    ins = _tensors((args, kwargs))
    before = versions(ins)
    try:
        out = copy.deepcopy(module).train().forward(*args, **kwargs)
    except Exception:  # whatever a foreign forward makes of it
        return False
    return versions(ins) == before and _returns_input(ins, _tensors(out))


def _channels(node: Node, out: Tensor, given: Arguments, func: Function | None) -> Tensor | None:
    """The `channels` of what takes this output."""
    module = node.module
    if isinstance(module, LINEAR):
        # Another forward than torch's may do more after the bias.
        if "forward" in vars(module) or not str(type(module).forward.__module__).startswith("torch."):
            return None
        positions = len(module.kernel_size) if isinstance(module, _ConvNd) else 0
        count = out.shape[-1 - positions]
        numbers = torch.arange(count, dtype=torch.int32, device="cpu")
        return numbers.view(count, *[1] * positions).expand(out.shape)
    if node.channels is None or not moves_only(node) or out.numel() != node.channels.numel():
        return None
    if func is not None and node.name in TURNS:
        args, kwargs = given
        turned: Tensor = func(node.channels, *args[1:], **kwargs)
        return turned
    return node.channels.reshape(out.shape)


def _turn(func: Function, args: Any, kwargs: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The order of dimensions, shown by a tensor whose sizes are their numbers; None where it has another form."""
    if not args or not isinstance(args[0], Tensor):
        return None
    out = func(torch.empty([*range(args[0].dim())], device="meta"), *args[1:], **kwargs)
    return tuple(out.shape) if isinstance(out, Tensor) else None


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _rate(args: Any, kwargs: Mapping[str, Any]) -> float:
    # F.dropout(input, p, training): in evaluation a layer passes its p along with training=False.
    rate = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    return float(rate) if isinstance(rate, int | float) else 0.0


def call_graph(model: nn.Module, call: Callable[[], Any], norms: Collection[nn.Module], look: Look) -> CallGraph:
    """Run the model once without gradients, and record which call reads the output of which.

    Args:
        model: in the mode it is to be run in.
        call: calls the model.
        norms: the norms; nothing inside them is recorded.
        look: called before each norm.

    Returns:
        The graph of calls.
    """
    names = {
        module: name
        for name, module in model.named_modules()
        if module in norms or (not set(module._modules) - {"parametrizations"} and "parametrizations" not in name)
    }
    recorder = _CallRecorder(names, norms, look)
    for tensor in _tensors(recorder.record(call, names)):
        if tensor in recorder.makers:
            recorder.graph.mark_output(recorder.makers[tensor])
    return recorder.graph
