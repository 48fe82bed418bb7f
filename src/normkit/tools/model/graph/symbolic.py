"""The graph of a model by symbolic tracing: the same for every input, where there is one."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn

from normkit.tools.model.tree import copy_of


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
    """The graph of a model, or None where Python decides by what it computes.

    Args:
        model: any module.
        is_leaf: whether a module of the model is one node of the graph; None leaves it to torch.
        args, kwargs: an input; arguments of ``forward`` that it leaves out have their defaults.

    Example:
        >>> graph = symbolic_graph(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), lambda module: None)
        >>> [node.name for node in graph.nodes]
        ['input_1', '_0', '_1', 'output']
    """
    # On a copy that shares the tensors: a forward may keep something of its input, which is a stand-in here.
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
    except Exception:  # whatever a foreign forward makes of a stand-in
        return None
