"""The graph of a model by symbolic tracing: the same for every input, where there is one."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import fx, nn

from normkit.evaluation import arguments
from normkit.tools.model.tree import copy_of

METADATA = {"size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "is_floating_point", "__len__"}
METADATA |= {"element_size", "get_device", "shape", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad"}
METADATA |= {"is_complex", "is_sparse", "is_quantized", "is_nested", "is_mkldnn", "is_meta", "is_cpu", "is_mps"}
METADATA |= {"grad_fn"}
"""Attributes of a tensor that do not depend on its values; folding changes none of them."""

VALUE_FREE = METADATA | {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"}
VALUE_FREE |= {"new_zeros", "new_ones", "new_empty", "new_full"}
"""The same, and functions that make another tensor from them."""

PASSING = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)
"""Modules whose output in evaluation is their input, in another shape perhaps."""


class _Tracer(fx.Tracer):
    def __init__(self, is_leaf: Callable[[nn.Module], bool | None]) -> None:
        super().__init__()
        self.is_leaf = is_leaf

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = self.is_leaf(m)
        return super().is_leaf_module(m, module_qualified_name) if leaf is None else leaf


def symbolic_graph(
    model: nn.Module,
    is_leaf: Callable[[nn.Module], bool | None],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> fx.Graph | None:
    """The graph of a model, or None where control flow depends on values.

    Args:
        model: any module.
        is_leaf: whether a module of the model is one node of the graph; None leaves it to torch.
        args, kwargs: an input; arguments of ``forward`` that it leaves out have their defaults.

    Example:
        >>> graph = symbolic_graph(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), lambda module: None)
        >>> [node.name for node in graph.nodes]
        ['input_1', '_0', '_1', 'output']
    """
    # On a copy that shares the tensors: a forward may keep something of its input, which is a proxy here.
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    modules = dict(model.named_modules(remove_duplicate=False))
    try:
        twin = copy_of(model, memo)
        originals = {copy: modules.get(name, copy) for name, copy in twin.named_modules(remove_duplicate=False)}
        signature = inspect.signature(twin.forward)
        given = signature.bind_partial(*args, **kwargs or {}).arguments
        defaults = {
            name: argument.default
            for name, argument in signature.parameters.items()
            if name not in given and argument.default is not inspect.Parameter.empty
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _Tracer(lambda module: is_leaf(originals.get(module, module))).trace(twin, defaults)
    except Exception:  # a foreign forward may do anything with a proxy
        return None


class SymbolicGraph:
    """The symbolic graph by module: the nodes that call it, and those that read its parameters."""

    def __init__(self, graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self.nodes: dict[nn.Module, list[fx.Node]] = {}
        self.reads: dict[nn.Module, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                self.nodes.setdefault(modules[str(node.target)], []).append(node)
            elif node.op == "get_attr" and (owner := modules.get(str(node.target).rpartition(".")[0])):
                self.reads.setdefault(owner, []).append(node)

    @staticmethod
    def of(model: nn.Module, leaves: Collection[nn.Module], example: Any) -> SymbolicGraph | None:
        """The graph, or None where control flow depends on values; other arguments than the example's have defaults."""
        args, kwargs = arguments(example)

        def is_leaf(module: nn.Module) -> bool | None:
            return False if isinstance(module, nn.Identity) else module in leaves or None

        graph = symbolic_graph(model, is_leaf, args, kwargs)
        return None if graph is None else SymbolicGraph(graph, dict(model.named_modules(remove_duplicate=False)))

    def joins(self, first: nn.Module, *others: nn.Module, moves: Collection[str] = ()) -> bool:
        """Whether only the other modules read the output of the first, and read nothing else.

        Args:
            first, others: modules that are nodes of the graph.
            moves: functions that may be between, by their names without underscores; dropout and the like are, then.
        """
        takers = {node for module in others for node in self.nodes.get(module, ())}
        waiting, reached = [*self.nodes.get(first, ())], set()
        while waiting:
            node = waiting.pop()
            for user in node.users:
                if user in takers and user.all_input_nodes[0] is node:
                    reached.add(user)
                elif moves and self._moves(user, node, moves):
                    waiting.append(user)
                elif not _is_metadata(user):
                    return False
        return bool(takers) and reached == takers

    def _moves(self, user: fx.Node, node: fx.Node, moves: Collection[str]) -> bool:
        if not user.args or user.args[0] is not node:
            return False
        if user.op == "call_module":
            return isinstance(self.modules[str(user.target)], PASSING)
        return user.op != "output" and _name(user).strip("_") in moves

    def reads_values(self, module: nn.Module) -> bool:
        """Whether anything but the module's own forward computes with its parameters."""
        return any(not _is_metadata(user) for node in self.reads.get(module, []) for user in node.users)


def _name(node: fx.Node) -> str:
    """The name of the function that a node calls, or of the attribute that it reads."""
    target = node.args[1] if node.target is getattr else node.target
    return target if isinstance(target, str) else str(getattr(target, "__name__", ""))


def _is_metadata(node: fx.Node) -> bool:
    return node.op in ("call_method", "call_function") and _name(node) in VALUE_FREE
