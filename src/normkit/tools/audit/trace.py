"""Which module feeds which: one run of the model, watched from outside; names decide nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

MOVES = {"view", "reshape", "flatten", "unflatten", "transpose", "permute", "contiguous", "squeeze", "unsqueeze", "to"}
MOVES |= {"__get__", "float", "half", "bfloat16", "type", "type_as", "clone", "movedim", "swapaxes", "view_as"}
"""Operations that move values or change their dtype and do nothing else."""


@dataclass(frozen=True)
class Node:
    """One call of a module that has nothing inside, of a norm, or of a function of torch between them.

    Attributes:
        index: position in the order of the calls.
        module: what was called; None for a function.
        name: dotted name of the module, or name of the function.
        inputs: nodes that made its tensors; -1 for what comes from outside or from parameters.
        shapes: of its input tensors.
        same: it returned the very tensor that it was given.
        dropout: probability, for a call of torch's dropout functions.
    """

    index: int
    module: nn.Module | None
    name: str
    inputs: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    same: bool
    dropout: float = 0.0


@dataclass
class Graph:
    """All calls of one run, in order."""

    nodes: list[Node] = field(default_factory=list)
    consumers: dict[int, list[int]] = field(default_factory=dict)

    def add(self, node: Node) -> None:
        """Put a call behind the others."""
        self.nodes.append(node)
        for index in set(node.inputs):
            self.consumers.setdefault(index, []).append(node.index)

    def calls(self, module: nn.Module) -> list[Node]:
        """The calls of one module."""
        return [node for node in self.nodes if node.module is module]

    def alone_before(self, node: Node, moves: bool = True) -> Node | None:
        """What feeds the first input of a node and nothing else; with `moves`, views between are looked through."""
        while node.inputs and node.inputs[0] >= 0:
            node, after = self.nodes[node.inputs[0]], node
            if [*self.consumers.get(node.index, ())] != [after.index]:
                return None
            if not (moves and moves_only(node)):
                return node
        return None

    def mark_output(self, index: int) -> None:
        """A tensor that leaves the model is used by someone else, too."""
        self.consumers.setdefault(index, []).append(-1)


def moves_only(node: Node) -> bool:
    """Whether a call hands its values on unchanged."""
    if node.module is None:
        return node.name in MOVES
    return isinstance(node.module, nn.Identity | nn.Flatten | nn.Unflatten) or (
        node.same and not is_dropout(node) and not node.module._parameters
    )


def is_dropout(node: Node) -> bool:
    """Whether a call drops values in training."""
    if node.module is None:
        return node.dropout > 0
    return isinstance(node.module, nn.modules.dropout._DropoutNd) and node.module.p > 0


class _Recorder(TorchFunctionMode):
    """Writes down calls of torch's functions, but not those that happen inside a watched module."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph()
        self.makers: Any = WeakIdKeyDictionary()
        self.depth = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.depth == 0:
            name = getattr(func, "__name__", str(func))
            made = args[0] if name == "__setitem__" else out
            self.note(None, name, (args, kwargs), made, _rate(args, kwargs) if "dropout" in name else 0.0)
        return out

    def note(self, module: nn.Module | None, name: str, given: Any, made: Any, dropout: float = 0.0) -> None:
        ins, outs = _tensors(given), _tensors(made)
        if not outs:
            return
        known = [tensor for tensor in ins if module is None or not isinstance(tensor, nn.Parameter)]
        node = Node(
            len(self.graph.nodes),
            module,
            name,
            tuple(self.makers.get(tensor, -1) for tensor in known),
            tuple(tuple(tensor.shape) for tensor in known),
            any(out is tensor for out in outs for tensor in ins),
            dropout,
        )
        self.graph.add(node)
        for out in outs:
            self.makers[out] = node.index


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _rate(args: Any, kwargs: Mapping[str, Any]) -> float:
    # F.dropout(input, p, training): in evaluation a layer passes its p along with training=False.
    rate = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    return float(rate) if isinstance(rate, int | float) else 0.0


Look = Callable[[str, nn.Module, Tensor], None]
"""What is told of each call of a norm: name, module, its input."""


def run(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], norms: Mapping[nn.Module, str], look: Look
) -> Graph:
    """Run the model once without gradients and write down what feeds what.

    Args:
        model: in the mode it is to be run in.
        args, kwargs: what it is called with.
        norms: the norms and their names; nothing inside them is looked at.
        look: called before each norm.

    Returns:
        The graph of calls.
    """
    recorder = _Recorder()
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if module in norms or (not set(module._modules) - {"parametrizations"} and "parametrizations" not in name):
                _watch(stack, recorder, norms.get(module, name), module, look if module in norms else None)
        with torch.no_grad(), recorder:
            out = model(*args, **kwargs)
    for tensor in _tensors(out):
        if tensor in recorder.makers:
            recorder.graph.mark_output(recorder.makers[tensor])
    return recorder.graph


def _watch(stack: contextlib.ExitStack, recorder: _Recorder, name: str, module: nn.Module, look: Look | None) -> None:
    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        recorder.depth += 1
        given = _tensors((args, kwargs))
        if look is not None and given and recorder.depth == 1:
            look(name, module, given[0])

    def after(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        recorder.depth -= 1
        if recorder.depth == 0:
            recorder.note(module, name, (args, kwargs), out)

    for handle in (
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    ):
        stack.callback(handle.remove)


def each_norm(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], norms: Mapping[nn.Module, str], look: Look
) -> None:
    """Run the model once without gradients and look at what each norm is given."""
    with contextlib.ExitStack() as stack:
        for module, name in norms.items():
            stack.callback(module.register_forward_pre_hook(_looker(name, look), with_kwargs=True).remove)
        with torch.no_grad():
            model(*args, **kwargs)


def _looker(name: str, look: Look) -> Callable[[nn.Module, Any, Any], None]:
    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        given = _tensors((args, kwargs))
        if given:
            look(name, module, given[0])

    return before


def iterate(loader: Any, limit: int) -> Iterator[Any]:
    """The first batches of a loader."""
    for index, batch in enumerate(loader):
        if index == limit:
            return
        yield batch
