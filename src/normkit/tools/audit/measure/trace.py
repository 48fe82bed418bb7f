"""Which module feeds which: one run of the model, watched from outside; names decide nothing."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

MOVES = {"view", "reshape", "flatten", "unflatten", "transpose", "permute", "contiguous", "squeeze", "unsqueeze", "to"}
MOVES |= {"__get__", "float", "half", "bfloat16", "type", "type_as", "clone", "movedim", "swapaxes", "view_as"}
"""Operations that move values or change their dtype and do nothing else."""

TURNS = {"__get__", "transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims"}
"""Those that change the order of the elements; the others keep it."""

LINEAR = (_ConvNd, nn.Linear)


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
            None where it is not the output of one, as it is or moved.
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

    def sources(self, starts: Collection[int]) -> set[int]:
        """The nodes that the values of these nodes come from, themselves among them."""
        return _reached(starts, lambda index: self.nodes[index].inputs)

    def users(self, starts: Collection[int]) -> set[int]:
        """The nodes that the values of these nodes reach, themselves among them."""
        return _reached(starts, lambda index: self.consumers.get(index, ()))

    def mark_output(self, index: int) -> None:
        """A tensor that leaves the model is used by someone else, too."""
        self.consumers.setdefault(index, []).append(-1)


def _reached(starts: Collection[int], following: Callable[[int], Collection[int]]) -> set[int]:
    found, waiting = set(starts), [*starts]
    while waiting:
        new = {index for index in following(waiting.pop()) if index >= 0} - found
        found |= new
        waiting += new
    return found


def moves_only(node: Node) -> bool:
    """Whether a call hands its values on unchanged."""
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


class _Recorder(TorchFunctionMode):
    """Writes down calls of torch's functions, but not those that happen inside a watched module."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph()
        self.makers: Any = WeakIdKeyDictionary()
        self.channels: Any = WeakIdKeyDictionary()
        self.depth = 0
        self.versions: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.depth == 0:
            self.versions = _versions(_tensors((args, kwargs)))
        out = func(*args, **kwargs)
        if self.depth == 0:
            name = getattr(func, "__name__", str(func))
            made = args[0] if name == "__setitem__" else out
            self.note(None, name, (args, kwargs), made, func)
        return out

    def note(
        self,
        module: nn.Module | None,
        name: str,
        given: tuple[Any, Any],
        made: Any,
        func: Callable[..., Any] | None = None,
    ) -> None:
        ins, outs = _tensors(given), _tensors(made)
        if not outs:
            return
        known = [tensor for tensor in ins if module is None or not isinstance(tensor, nn.Parameter)]
        same = self.versions == _versions(ins) and _hands_on(ins, outs)
        node = Node(
            len(self.graph.nodes),
            module,
            name,
            tuple(self.makers.get(tensor, -1) for tensor in known),
            tuple(tuple(tensor.shape) for tensor in known),
            same,
            same and module is not None and not _hands_on_in_training(module, given),
            _rate(*given) if module is None and "dropout" in name else 0.0,
            self.channels.get(known[0]) if known else None,
            tuple(tuple(out.shape) for out in outs),
            _turn(func, *given) if func is not None and name in TURNS else None,
        )
        self.graph.add(node)
        for out in outs:
            self.makers[out] = node.index
            self.channels[out] = _channels(node, out, given, func)


def _versions(tensors: list[Tensor]) -> list[int]:
    """What counts the writes to each."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def _hands_on(ins: list[Tensor], outs: list[Tensor]) -> bool:
    return any(out is tensor for out in outs for tensor in ins)


def _hands_on_in_training(module: nn.Module, given: tuple[Any, Any]) -> bool:
    """Tried on copies, so that neither the module nor the tensors notice."""
    args, kwargs = tree_map_only(Tensor, Tensor.clone, given)
    ins = _tensors((args, kwargs))
    before = _versions(ins)
    try:
        out = copy.deepcopy(module).train().forward(*args, **kwargs)
    except Exception:  # whatever a foreign forward makes of it
        return False
    return _versions(ins) == before and _hands_on(ins, _tensors(out))


def _channels(node: Node, out: Tensor, given: tuple[Any, Any], func: Callable[..., Any] | None) -> Tensor | None:
    """The `channels` of what takes this output."""
    module = node.module
    if isinstance(module, LINEAR):
        # A forward of someone else's may do more after the bias.
        if "forward" in vars(module) or not str(type(module).forward.__module__).startswith("torch."):
            return None
        behind = len(module.kernel_size) if isinstance(module, _ConvNd) else 0
        count = out.shape[-1 - behind]
        numbers = torch.arange(count, dtype=torch.int32, device="cpu")
        return numbers.view(count, *[1] * behind).expand(out.shape)
    if node.channels is None or not moves_only(node) or out.numel() != node.channels.numel():
        return None
    if func is not None and node.name in TURNS:
        args, kwargs = given
        turned: Tensor = func(node.channels, *args[1:], **kwargs)
        return turned
    return node.channels.reshape(out.shape)


def _turn(func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> tuple[int, ...] | None:
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


Look = Callable[[str, nn.Module, Tensor], None]
"""What is told of each call of a norm: name, module, its input."""

LookAtMask = Callable[[str, nn.Module, Tensor, bool], None]
"""The same, and whether a mask says what in the input is padding."""


def run(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], norms: Mapping[nn.Module, str], look: LookAtMask
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


def _watch(
    stack: contextlib.ExitStack, recorder: _Recorder, name: str, module: nn.Module, look: LookAtMask | None
) -> None:
    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        recorder.depth += 1
        given = _tensors((args, kwargs))
        if recorder.depth == 1:
            recorder.versions = _versions(given)
        if look is not None and given and recorder.depth == 1:
            look(name, module, given[0], kwargs.get("mask") is not None)

    def after(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if recorder.depth == 1:
            recorder.note(module, name, (args, kwargs), out)
        recorder.depth -= 1

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
