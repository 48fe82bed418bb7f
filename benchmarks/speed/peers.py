"""Norms for GPUs from other libraries, where they are installed, as functions of the same tensors as ours."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.workloads import Cell

Function = Callable[..., Any]
Made = Callable[[Cell, float, int], Function | None]
"""From cell, eps and groups to a function of x, weight and bias; None if the library has no such norm."""


@dataclass(frozen=True)
class Peer:
    """One library.

    Attributes:
        package: what is imported.
        make: its function for a cell. It raises what its import raises, which a benchmark reports in the cell.
        parameters: the dtype that it wants weight and bias in, if it is not that of torch's contestant.
        differentiable: whether it has a backward pass.
    """

    package: str
    make: Made
    parameters: torch.dtype | None = None
    differentiable: bool = True


def liger(cell: Cell, eps: float, groups: int) -> Function | None:
    """Liger-Kernel in Triton; its RMSNorm writes into dy by default."""
    if cell.method not in ("layer_norm", "rms_norm", "group_norm", "layer_norm_image"):
        return None
    from liger_kernel.transformers import functional as f

    channels = cell.shape[1]
    return {
        "layer_norm": lambda x, w, b: f.liger_layer_norm(x, w, b, eps),
        "rms_norm": lambda x, w: f.liger_rms_norm(x, w, eps, in_place=False),
        "group_norm": lambda x, w, b: f.liger_group_norm(x, w, b, channels, groups, eps),
        "layer_norm_image": lambda x, w, b: f.liger_group_norm(x, w, b, channels, 1, eps),
    }[cell.method]


def liger_cute(cell: Cell, eps: float, groups: int) -> Function | None:
    """Liger-Kernel's RMSNorm in the CuTe DSL, which it takes by itself only on request."""
    if cell.method != "rms_norm":
        return None
    from liger_kernel.ops.cutedsl.ops.rms_norm import LigerRMSNormFunction

    return lambda x, w: LigerRMSNormFunction.apply(x, w, eps, 0.0, "llama", False)


class _QuackLayerNorm(torch.autograd.Function):
    """quack has both passes of LayerNorm, and joins them in no function of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        from quack.rmsnorm import layernorm_fwd

        y, rstd, mean = layernorm_fwd(x, weight, bias, eps, return_rstd=True, return_mean=True)
        ctx.save_for_backward(x, weight, rstd, mean)
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        from quack.rmsnorm import layernorm_bwd

        x, weight, rstd, mean = ctx.saved_tensors
        return *layernorm_bwd(x, weight, dy, rstd, mean), None


def quack(cell: Cell, eps: float, groups: int) -> Function | None:
    """quack-kernels' RMSNorm."""
    if cell.method != "rms_norm":
        return None
    from quack.rmsnorm import rmsnorm

    return lambda x, w: rmsnorm(x, w, eps=eps)


def quack_layer_norm(cell: Cell, eps: float, groups: int) -> Function | None:
    """quack-kernels' LayerNorm, which takes its parameters in float32."""
    if cell.method != "layer_norm":
        return None
    from quack.rmsnorm import layernorm_fwd

    if cell.backward:
        return lambda x, w, b: _QuackLayerNorm.apply(x, w, b, eps)
    return lambda x, w, b: layernorm_fwd(x, w, b, eps)


def flashinfer(cell: Cell, eps: float, groups: int) -> Function | None:
    """FlashInfer's RMSNorm, in half precision and forward only."""
    if cell.method != "rms_norm" or cell.dtype == "float32":
        return None
    from flashinfer.norm import rmsnorm

    return lambda x, w: rmsnorm(x, w, eps)


def flashinfer_layer_norm(cell: Cell, eps: float, groups: int) -> Function | None:
    """FlashInfer's LayerNorm: bfloat16 with parameters in float32, forward only."""
    if cell.method != "layer_norm" or cell.dtype != "bfloat16":
        return None
    from flashinfer.norm import layernorm

    return lambda x, w, b: layernorm(x, w, b, eps)


def apex(cell: Cell, eps: float, groups: int) -> Function | None:
    """NVIDIA's apex."""
    if cell.method not in ("layer_norm", "rms_norm"):
        return None
    from apex.normalization import fused_layer_norm as f

    last = cell.shape[1:]
    return {
        "layer_norm": lambda x, w, b: f.fused_layer_norm_affine(x, w, b, last, eps),
        "rms_norm": lambda x, w: f.fused_rms_norm_affine(x, w, last, eps),
    }[cell.method]


PEERS: Mapping[str, Peer] = {
    "liger": Peer("liger_kernel", liger),
    "liger cute": Peer("liger_kernel", liger_cute),
    "quack": Peer("quack", quack),
    "quack layer norm": Peer("quack", quack_layer_norm, parameters=torch.float32),
    "flashinfer": Peer("flashinfer", flashinfer, differentiable=False),
    "flashinfer layer norm": Peer("flashinfer", flashinfer_layer_norm, parameters=torch.float32, differentiable=False),
    "apex": Peer("apex", apex),
}


def installed() -> dict[str, Peer]:
    """Those whose package is there."""
    return {name: peer for name, peer in PEERS.items() if importlib.util.find_spec(peer.package)}
