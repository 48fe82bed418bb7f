"""Distributed tensors (`torch.distributed.tensor`): what the operators do with them.

The rules in this folder are loaded when something watches a call and torch has loaded distributed tensors.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor


def know_distributed() -> bool:
    """Register the rules as soon as torch has loaded distributed tensors; before, there is none.

    Called where something watches a call, for its tensors may be distributed then.
    """
    if "torch.distributed.tensor" in sys.modules:
        from normkit.kernels.sharded import register  # noqa: F401
    return True


# Called while a graph is traced, and its answer is kept: `normkit.functional.call.recompute` has another such function.
know_distributed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_distributed(t: Tensor | None) -> bool:
    """Whether it is a distributed tensor."""
    return hasattr(t, "device_mesh") and hasattr(t, "placements")


def replicated(t: Any, like: Tensor) -> Any:
    """A tensor as a distributed one that is the same on every process, where `like` is distributed."""
    if t is None or is_distributed(t) or not is_distributed(like):
        return t
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh  # type: ignore[attr-defined]
    return DTensor.from_local(t, mesh, [Replicate()] * mesh.ndim, run_check=False)


def whole(t: Tensor) -> Tensor:
    """A distributed tensor as a plain one, which each process has as a whole; others as they are."""
    return t.full_tensor() if is_distributed(t) else t  # type: ignore[attr-defined]
