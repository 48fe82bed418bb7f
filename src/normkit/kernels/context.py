"""Detects what watches a call: tracing, transforms of `torch.func`, forward mode, dispatch modes, a backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
_PLAIN_OR_NONE = (*_PLAIN_TYPES, type(None))
_dispatch_modes = torch._C._len_torch_dispatch_stack
_transform = torch._C._functorch.peek_interpreter_stack
_transforms = torch._C._functorch.get_interpreter_stack
_is_compiling = torch.compiler.is_compiling


def is_watched(x: Tensor) -> bool:
    """Whether something other than plain eager execution may want to see the operator itself."""
    return (
        type(x) not in _PLAIN_TYPES
        or _is_compiling()
        or _dispatch_modes() > 0
        or _transform() is not None
        or forward_ad._current_level >= 0
    )


def is_plain(t: Tensor | None) -> bool:
    """Whether it is no subclass of a tensor, such as a distributed one."""
    return type(t) in _PLAIN_OR_NONE


@contextmanager
def transforms_in_use() -> Iterator[None]:
    """Let `torch.func` work where torch has turned it off: in what a dispatch mode or a tensor subclass calls."""
    if not torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.FuncTorchDynamicLayerFrontMode):
        yield
        return
    excluded = torch._C._dispatch_tls_local_exclude_set()
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded - excluded):
        yield


def is_transformed() -> bool:
    """Whether a transform of `torch.func` is active."""
    return _transform() is not None


def is_differentiated() -> bool:
    """Whether a transform or forward mode needs a formula in plain torch: it cannot see an operator's own gradient."""
    return not _is_compiling() and (_transform() is not None or forward_ad._current_level >= 0)


def is_only_mapped() -> bool:
    """Whether every active transform is a `vmap`; what differentiates is outside of them, torch's autograd."""
    if forward_ad._current_level >= 0:
        return False
    return all(level.key() == torch._C._functorch.TransformType.Vmap for level in _transforms() or ())


def is_traced() -> bool:
    """Whether `torch.jit.trace` records this call."""
    return torch._C._get_tracing_state() is not None


def is_exported() -> bool:
    """Whether this call is being exported to ONNX, or recorded by `torch.jit.trace`."""
    if _is_compiling():
        return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
    return is_traced()


def is_in_backward() -> bool:
    """Whether a backward pass is running, in which activation checkpointing runs a forward again."""
    return torch._C._current_graph_task_id() != -1


def has_saving_hooks() -> bool:
    """Whether hooks replace the tensors that autograd saves, as activation checkpointing does."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def wants_gradient(*tensors: Tensor | None) -> bool:
    if torch.is_grad_enabled():
        for t in tensors:  # not any(): half the time
            if t is not None and t.requires_grad:
                return True
    return False
