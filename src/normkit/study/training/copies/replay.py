"""Replays a recorded training step with few calls of torch: the same arithmetic without the calls that only make views.

More than half of the operations that `make_fx` records for a small model return views of their arguments. The shapes
of a recorded step never change, so a chain of views is one view of a tensor, and its sizes and strides are known.
Views of parameters and buffers, which stay where they are in memory, and constants are made before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from normkit.kernels.operator import BODIES

Gradients = Sequence[Tensor | None]
Bound = Callable[[Any, Any], tuple[Tensor, Gradients]]
"""A training step of some parameters and buffers: (inputs, targets) -> losses and gradients."""

aten = torch.ops.aten
_VIEWS = frozenset(
    {
        aten._unsafe_view.default,
        aten.alias.default,
        aten.detach.default,
        aten.expand.default,
        aten.permute.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.t.default,
        aten.transpose.int,
        aten.unsqueeze.default,
        aten.view.default,
    }
)
"""Operations that return a view of their first argument."""
_CONSTANTS = frozenset({aten.scalar_tensor.default, aten.arange.default, aten.arange.start, aten.arange.start_step})
"""Operations that depend on no tensor."""


class _Form(NamedTuple):
    """The dtype of a tensor, and where its elements are in its memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


def _form(tensor: Tensor) -> _Form:
    return _Form(tensor.dtype, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))


class Replay:
    """A recorded step in two parts: calls that depend on parameters and buffers only, and those of every step.

    Args:
        recorded: the graph from `make_fx`, which is changed.
        given: parameters, buffers, inputs and targets like those that it was recorded with; it updates the buffers.
    """

    def __init__(self, recorded: fx.GraphModule, given: tuple[Any, Any, Any, Any]) -> None:
        self._forms = [_form(leaf) if isinstance(leaf, Tensor) else None for leaf in pytree.tree_leaves(given)]
        self._fixed = len(pytree.tree_leaves(given[:2]))
        observed = _Observed(recorded)
        observed.run(*given)
        graph = recorded.graph
        _merge_views(graph, observed.forms)
        graph.eliminate_dead_code()
        _transpose_products(graph, observed.forms)
        graph.eliminate_dead_code()
        for node in graph.nodes:
            node.target = BODIES.get(node.target, node.target)
        first, second = _split(graph, self._fixed)
        self._prepare = fx.GraphModule(recorded, first).forward
        self._step = fx.GraphModule(recorded, second).forward

    def bind(self, parameters: Any, buffers: Any) -> Bound:
        """The step of these parameters and buffers, which must stay where they are in memory."""
        fixed = pytree.tree_leaves((parameters, buffers))
        assert [_form(leaf) for leaf in fixed] == self._forms[: self._fixed], "another layout than the recorded one"
        forms, step = self._forms[self._fixed :], self._step
        with torch.no_grad():
            prepared = self._prepare(*fixed)

        def bound(inputs: Any, targets: Any) -> tuple[Tensor, Gradients]:
            batch = pytree.tree_leaves((inputs, targets))
            losses, *gradients = step(*prepared, *map(_laid_out, batch, forms))
            return losses, gradients

        return bound


def _laid_out(leaf: Any, form: _Form | None) -> Any:
    """A tensor of a batch as it was in the recorded one."""
    if form is None or _form(leaf) == form:
        return leaf
    memory = leaf.new_empty(form.offset + 1 + sum((n - 1) * s for n, s in zip(form.shape, form.stride, strict=True)))
    return memory.as_strided(form.shape, form.stride, form.offset).copy_(leaf)


class _Observed(fx.Interpreter):
    """Runs a graph and notes the form of every tensor in it."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.forms: dict[fx.Node, _Form] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if isinstance(value, Tensor):
            self.forms[node] = _form(value)
        return value


def _merge_views(graph: fx.Graph, forms: dict[fx.Node, _Form]) -> None:
    """Replace each view of a view by one view of the tensor, or by the tensor if it is the same."""
    roots: dict[fx.Node, fx.Node] = {}
    views: dict[tuple[fx.Node, _Form], fx.Node] = {}
    for node in list(graph.nodes):
        if node.target is aten.mul.Scalar and node.args[1] == 1 and forms[node].dtype is forms[node.args[0]].dtype:
            # `linear` under vmap multiplies with its alpha and beta.
            node.replace_all_uses_with(node.args[0])
        elif node.target in _VIEWS:
            source = node.args[0]
            root, form = roots.get(source, source), forms[node]
            if form == forms[root]:
                node.replace_all_uses_with(root)
                continue
            if (root, form) not in views:
                with graph.inserting_before(node):
                    found = graph.call_function(torch.as_strided, (root, form.shape, form.stride, form.offset))
                views[root, form] = found
                roots[found], forms[found] = root, form
            node.replace_all_uses_with(views[root, form])


def _transpose_products(graph: fx.Graph, forms: dict[fx.Node, _Form]) -> None:
    """Compute a matrix product the other way round where only a copy of its transpose is used."""
    for node in list(graph.nodes):
        if node.target is not aten.clone.default or node.args[0].target is not torch.as_strided:
            continue
        view = node.args[0]
        product = view.args[0]
        swapped = forms[view].stride == _swapped(forms[product].stride) if product in forms else False
        if product.target is aten.bmm.default and swapped and len(product.users) == len(view.users) == 1:
            with graph.inserting_before(node):
                right, left = (
                    graph.call_function(
                        torch.as_strided, (t, _swapped(forms[t].shape), _swapped(forms[t].stride), forms[t].offset)
                    )
                    for t in product.args
                )
                other = graph.call_function(aten.bmm.default, (left, right))
            node.replace_all_uses_with(other)
            forms[other] = forms[node]


def _swapped(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes or strides with the last two dimensions exchanged."""
    return (*sizes[:-2], sizes[-1], sizes[-2])


def _split(graph: fx.Graph, count: int) -> tuple[fx.Graph, fx.Graph]:
    """The nodes that depend on the first `count` arguments only and do no arithmetic, and the others."""
    changed = {node.args[0] for node in graph.nodes if _changes(node.target)}
    fixed: set[fx.Node] = set()
    arguments = [node for node in graph.nodes if node.op == "placeholder"]
    for node in graph.nodes:
        constant = node.op == "get_attr" or (node.target in _CONSTANTS and node not in changed)
        if constant or node in arguments[:count] or (node.target is torch.as_strided and node.args[0] in fixed):
            fixed.add(node)
    kept = [node for node in graph.nodes if node in fixed and any(user not in fixed for user in node.users)]
    first, second = fx.Graph(), fx.Graph()
    before: dict[fx.Node, fx.Node] = {}
    after = {node: second.placeholder(node.name) for node in [*kept, *arguments[count:]]}
    for node in graph.nodes:
        if node in fixed:
            before[node] = first.node_copy(node, before.__getitem__)
        elif node not in after:
            after[node] = second.node_copy(node, after.__getitem__)
    first.output(tuple(before[node] for node in kept))
    return first, second


def _changes(target: Any) -> bool:
    """Whether an operation changes its arguments."""
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
