"""Moves the neighbours of ``normkit::norm`` into it, in a graph of ``torch.compile`` for a CPU.

The kernels add a residual, multiply with a gate, add a skip and apply an activation while a block is in the cache; as
operations of their own these would pass over memory again. The pass sees the graph before gradients are derived, so
forward and backward both take what has been moved. `move_neighbours` describes when an operation is moved.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._inductor.fx_passes import pre_grad
from torch._inductor.pattern_matcher import MULTIPLE, CallFunctionVarArgs, Match, register_graph_pattern
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F

from normkit.kernels import devices
from normkit.kernels.formula import Arguments

_ACTIVATIONS: dict[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.leaky_relu: "leaky_relu",
    F.silu: "silu",
    F.gelu: "gelu",
    torch.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    **{name: name.removesuffix("_") for name in ("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_")},
}
"""Functions and methods of torch; of some the options decide, too (`_activation`)."""
_SUMS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_PRODUCTS: tuple[Any, ...] = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_IN_PLACE = (operator.iadd, operator.imul, "add_", "mul_")
_COMPUTED_ALONE: tuple[Any, ...] = (
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.scaled_dot_product_attention, F.embedding),
    *(torch.conv1d, torch.conv2d, torch.conv3d, torch.matmul, torch.bmm, operator.matmul, "matmul", operator.getitem),
)
"""What Inductor computes by a kernel of its own, so that the result is in memory anyway."""
_VIEWS: tuple[Any, ...] = ("view", "reshape", "flatten", "detach", "transpose", "permute", "unflatten", torch.flatten)


def register() -> None:
    """Let Inductor run the pass, as one more of its own patterns."""
    pattern = CallFunctionVarArgs(torch.ops.normkit.norm.default, users=MULTIPLE)
    register_graph_pattern(pattern, pass_dict=pre_grad.efficient_conv_bn_eval_pass)(_found)


def _found(match: Match, *args: Any, **kwargs: Any) -> None:
    move_neighbours(match.output_node())


def move_neighbours(norm: Node) -> None:
    """Move what comes directly before and after a call into it.

    An operation is moved if the result that it takes is used nowhere else, or is one that the call returns (the sum);
    if its operands are plain tensors of one shape, dtype, layout and device; and if no tensor is written and no mode
    changes in between such that the order would matter.
    """
    graph = norm.graph
    _drop_questions(graph)
    if norm.kwargs or len(norm.args) != len(Arguments._fields) or not _is_known(graph):
        return
    call = _Call(norm)
    if call.a.mask is None and call.is_on_cpu():
        while call.takes_sum() or call.takes_product() or call.takes_next():
            pass


def _drop_questions(graph: Graph) -> None:
    """Remove what Dynamo leaves of attributes that it has read, which count as users."""
    for node in list(graph.find_nodes(op="call_function", target=getattr)):
        if not node.users:
            graph.erase_node(node)


def _is_known(graph: Graph) -> bool:
    """Whether no transform of torch.func is in the graph: under it, shapes are not those of the tensors."""
    return not any("functorch" in str(getattr(node.target, "__module__", "")) for node in graph.nodes)


class _Binary(NamedTuple):
    """A sum or a product."""

    node: Node
    left: Any
    right: Any
    in_place: bool


def _binary(node: Node, kinds: tuple[Any, ...]) -> _Binary | None:
    if node.target not in kinds or len(node.args) + len(node.kwargs) < 2:
        return None
    options: dict[str, Any] = dict(node.kwargs)
    values: list[Any] = [*node.args, *(options.pop(name) for name in ("input", "other") if name in options)]
    if options.pop("alpha", 1) != 1 or options or len(values) != 2:
        return None
    return _Binary(node, values[0], values[1], node.target in _IN_PLACE)


def _activation(node: Node) -> tuple[str, Node] | None:
    """The name of the function that a node applies, and what it is applied to."""
    name = _ACTIVATIONS.get(node.target)
    options: dict[str, Any] = dict(node.kwargs)
    values: list[Any] = [*node.args]
    source = values.pop(0) if values else options.pop("input", None)
    if name is None or not isinstance(source, Node):
        return None
    if name == "leaky_relu" and (values.pop(0) if values else options.pop("negative_slope", 0.01)) != 0.01:
        return None
    if name == "gelu":
        name = {"none": "gelu", "tanh": "gelu_tanh"}.get(options.pop("approximate", "none"), "")
    del values[:1]  # whether it is in place
    options.pop("inplace", None)
    return None if values or options or not name else (name, source)


class _Call:
    """One call in a graph, and its result y, which grow as operations are moved into it."""

    def __init__(self, norm: Node) -> None:
        self.norm, self.graph = norm, norm.graph
        self.y = next((user for user in norm.users if _item(user) == 0), None)

    @property
    def a(self) -> Any:
        """The arguments; the tensors are nodes."""
        return Arguments(*self.norm.args)  # type: ignore[arg-type]

    def is_on_cpu(self) -> bool:
        x = _tensor(self.a.x)
        on_cpu = x is not None and x.device.type == "cpu" and not devices.is_on_gpu(x)
        return on_cpu and all(_item(user) is not None for user in self.norm.users)

    def replace(self, **changed: Any) -> None:
        self.norm.args = tuple(self.a._replace(**changed))

    # Before the call -----------------------------------------------------------------------------------------

    def before(self, kinds: tuple[Any, ...]) -> _Binary | None:
        """What computes x from two tensors like x, if nothing else of the call reads x and it can be done later."""
        x = self.a.x
        both = _binary(x, kinds)
        if both is None or both.in_place or self.a.residual is not None or self.a.gate is not None:
            return None
        operands = (both.left, both.right)
        if not all(_is_like(t, x) for t in operands):
            return None
        if sum(t is x for t in self.norm.args) != 1 or not self.is_movable(x, self.norm, operands):
            return None
        return both

    def takes_sum(self) -> bool:
        """A residual. If both are not in memory anyway, Inductor adds them in the pass that computes them."""
        both, s = self.before(_SUMS), self.a.x
        if both is None or not (_is_stored(both.left) and _is_stored(both.right)):
            return False
        others = [user for user in s.users if user is not self.norm]
        if any(user < self.norm for user in others):
            return False
        self.replace(x=both.left, residual=both.right)
        if others:
            with self.graph.inserting_after(self.norm):
                total = self.graph.call_function(operator.getitem, (self.norm, 1))
            total.meta = dict(s.meta)
            s.replace_all_uses_with(total)
        self.graph.erase_node(s)
        self._describe()
        return True

    def takes_product(self) -> bool:
        """A gate in front, whose product is used nowhere else."""
        both, product = self.before(_PRODUCTS), self.a.x
        if both is None or len(product.users) != 1 or self.a.skip is not None:
            return False
        x, factor = (both.right, both.left) if _activation(both.left) else (both.left, both.right)
        gate, function = self.gate_of(factor, product)
        self.replace(x=x, gate=gate, gate_activation=function, gate_first=True)
        self.graph.erase_node(product)
        self.drop(factor)
        return True

    # After the call ------------------------------------------------------------------------------------------

    def takes_next(self) -> bool:
        """What uses y, if it is the only one."""
        y, a = self.y, self.a
        if y is None or len(y.users) != 1 or a.activation != "none":
            return False
        after = next(iter(y.users))
        if not _is_like(after, y):
            return False
        function = _activation(after)
        if function is not None:
            if function[1] is not y or not self.is_movable(self.norm, after, ()):
                return False
            self.replace(activation=function[0])
            self.absorb(after)
            return True
        if a.skip is not None:
            return False
        added = _binary(after, _SUMS)
        if added is not None:
            return self.takes_skip(added, y)
        multiplied = _binary(after, _PRODUCTS)
        return multiplied is not None and a.gate is None and self.takes_gate(multiplied, y)

    def takes_skip(self, added: _Binary, y: Node) -> bool:
        other = self.other(added, y)
        if other is None:
            return False
        if _is_like(other, y):
            if not self.reaches(added.node, other):
                return False
            self.replace(skip=other)
        elif self.a.gate is None and self.a.bias is None and self.is_modulation(other, self.a.weight):
            if not self.reaches(added.node, other):
                return False
            self.replace(bias=other)
        else:
            return False
        self.absorb(added.node)
        return True

    def takes_gate(self, multiplied: _Binary, y: Node) -> bool:
        other = self.other(multiplied, y)
        if other is None:
            return False
        if _is_like(other, y):
            gate, function = self.gate_of(other, multiplied.node)
            if not self.reaches(multiplied.node, gate):
                return False
            self.replace(gate=gate, gate_activation=function)
        elif self.a.weight is None and self.a.bias is None and self.is_modulation(other, None):
            if not self.reaches(multiplied.node, other):
                return False
            self.replace(weight=other)
        else:
            return False
        self.absorb(multiplied.node)
        self.drop(other)
        return True

    def other(self, both: _Binary, y: Node) -> Node | None:
        """The operand that is not y; in place only y itself may be written."""
        if both.in_place and both.left is not y:
            return None
        other = both.right if both.left is y else both.left
        return other if isinstance(other, Node) and other is not y else None

    def is_modulation(self, t: Node, weight: Node | None) -> bool:
        """Whether a tensor can be the weight: one for each sample, say. A bias has the shape of the weight."""
        value, x = _tensor(t), _tensor(self.a.x)
        if value is None or x is None or value.dim() != x.dim() or x.dim() < 2 or value.device != x.device:
            return False
        if value.dtype is not x.dtype or not all(isinstance(n, int) for n in (*value.shape, *x.shape)):
            return False
        if any(n not in (1, size) for n, size in zip(value.shape, x.shape, strict=True)):
            return False
        if weight is None:
            return 1 < value.numel() < x.numel()
        like = _tensor(weight)
        return like is not None and like.shape == value.shape and like.dtype is value.dtype

    def gate_of(self, t: Node, user: Node) -> tuple[Node, str]:
        """A gate, and the function that is applied to it if that can be moved, too."""
        applied, name = _activation(t), ""
        if applied is not None:
            name, source = applied
        else:
            added = _binary(t, _SUMS)
            if added is None or added.in_place or 1 not in (added.left, added.right):
                return t, "none"
            name, source = "plus_one", added.left if isinstance(added.left, Node) else added.right
        in_place = str(t.target).endswith("_") or any(value is True for value in (*t.args[1:], *t.kwargs.values()))
        if in_place or list(t.users) != [user] or not _is_like(source, t) or not self.is_movable(t, user, (source,)):
            return t, "none"
        return source, name

    # The order ------------------------------------------------------------------------------------------------

    def reaches(self, after: Node, other: Node) -> bool:
        """Whether the call can read `other`, after being moved to where it is computed if that is later."""
        norm, y = self.norm, self.y
        assert y is not None
        if other < norm:
            return self.is_movable(norm, after, (other,))
        if any(user is not y and user < after for user in self.later_users()):
            return False
        if not self.is_movable(norm, after, norm.all_input_nodes):
            return False
        for node in [norm, *sorted(norm.users)]:
            after.prepend(node)
        return True

    def later_users(self) -> Iterator[Node]:
        for item in self.norm.users:
            yield from (user for user in item.users if item is not self.y)

    def is_movable(self, first: Node, last: Node, read: Any) -> bool:
        """Whether nothing between two nodes writes what is `read`, or changes a mode for good."""
        if first.graph is not last.graph:
            return False
        storages, grad = {_storage(t) for t in read}, torch.is_grad_enabled()
        modes: list[Node] = []
        state: tuple[bool, list[Node]] | None = None
        for node in self.graph.nodes:
            if node is last:
                return state == (grad, modes)
            if node is first:
                state = (grad, list(modes))
            elif (
                state is not None and _may_write(node) and not storages.isdisjoint(map(_storage, node.all_input_nodes))
            ):
                return False
            name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
            if name == "_set_grad_enabled":
                grad = bool(node.args[0])
            elif name.startswith(("_enter_", "enter_")):
                modes.append(node)
            elif name.startswith(("_exit_", "exit_")) and modes:
                modes.pop()
        return False

    def absorb(self, after: Node) -> None:
        """y takes the place of what was computed from it."""
        assert self.y is not None
        after.replace_all_uses_with(self.y)
        self.graph.erase_node(after)
        self._describe()

    def drop(self, t: Any) -> None:
        if isinstance(t, Node) and not t.users and t.op != "placeholder":
            self.graph.erase_node(t)

    def _describe(self) -> None:
        """Other passes read what a node returns from here."""
        value, total = self.norm.meta.get("example_value"), None if self.a.residual is None else _tensor(self.a.x)
        if isinstance(value, tuple):
            self.norm.meta["example_value"] = (value[0], total, *value[2:])


def _item(user: Node) -> int | None:
    """Which result of a call a node takes; None if it is another use of it."""
    return user.args[1] if user.target is operator.getitem and isinstance(user.args[1], int) else None


def _tensor(node: Any) -> Tensor | None:
    """What a node returns, without data; None if it is no plain tensor."""
    value = node.meta.get("example_value") if isinstance(node, Node) else None
    return value if type(value) is FakeTensor and value.layout is torch.strided else None


def _is_like(node: Any, other: Node) -> bool:
    """Whether both have one shape, dtype, layout and device."""
    t, like = _tensor(node), _tensor(other)
    if t is None or like is None or t.dtype is not like.dtype or bool(t.device != like.device) or t.dim() != like.dim():
        return False
    pairs = zip((*t.shape, *t.stride()), (*like.shape, *like.stride()), strict=True)
    return all(bool(statically_known_true(one == two)) for one, two in pairs)


def _is_stored(node: Any) -> bool:
    """Whether a tensor is in memory anyway, and not computed in passing."""
    while isinstance(node, Node) and (node.target in _VIEWS or _is_idle_dropout(node)):
        node = node.args[0]
    return isinstance(node, Node) and (node.op in ("placeholder", "get_attr") or node.target in _COMPUTED_ALONE)


def _is_idle_dropout(node: Node) -> bool:
    if node.target is not F.dropout:
        return False
    given = {**dict(zip(("p", "training"), node.args[1:], strict=False)), **node.kwargs}
    return given.get("training") is False or bool(given.get("p") == 0.0)


def _storage(node: Node) -> Any:
    value = node.meta.get("example_value")
    return value.untyped_storage()._cdata if isinstance(value, FakeTensor) else node


def _may_write(node: Node) -> bool:
    """Whether a node may write one of its arguments; what is not known may."""
    target = node.target
    if node.op == "call_method":
        return str(target).endswith("_") and not str(target).endswith("__")
    if isinstance(target, torch._ops.OpOverload):
        return bool(target._schema.is_mutable)
    if node.op != "call_function" or isinstance(target, torch._ops.HigherOrderOperator):
        return node.op in ("call_function", "call_module")
    name = getattr(target, "__name__", "")
    if getattr(target, "__module__", "") == "_operator":
        return name == "setitem" or (name.startswith("i") and name not in ("index", "inv", "invert", "is_", "is_not"))
    return name.endswith("_") or any(value is True for value in (*node.args, *node.kwargs.values()))
