"""Norms for GPUs from other libraries, where they are installed, as functions of the same tensors as ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.speed.workloads import Cell


def liger(cell: Cell, eps: float, groups: int) -> Callable[..., Any] | None:
    """Liger-Kernel; its RMSNorm writes into dy by default."""
    from liger_kernel.transformers import functional as f

    channels = cell.shape[1]
    return {
        "layer_norm": lambda x, w, b: f.liger_layer_norm(x, w, b, eps),
        "rms_norm": lambda x, w: f.liger_rms_norm(x, w, eps, in_place=False),
        "group_norm": lambda x, w, b: f.liger_group_norm(x, w, b, channels, groups, eps),
        "layer_norm_image": lambda x, w, b: f.liger_group_norm(x, w, b, channels, 1, eps),
    }.get(cell.method)


def quack(cell: Cell, eps: float, groups: int) -> Callable[..., Any] | None:
    """quack-kernels."""
    from quack.rmsnorm import rmsnorm

    return {"rms_norm": lambda x, w: rmsnorm(x, w, eps=eps)}.get(cell.method)


def apex(cell: Cell, eps: float, groups: int) -> Callable[..., Any] | None:
    """NVIDIA's apex."""
    from apex.normalization import fused_layer_norm as f

    last = cell.shape[1:]
    return {
        "layer_norm": lambda x, w, b: f.fused_layer_norm_affine(x, w, b, last, eps),
        "rms_norm": lambda x, w: f.fused_rms_norm_affine(x, w, last, eps),
    }.get(cell.method)


PEERS = {"liger": liger, "quack": quack, "apex": apex}
