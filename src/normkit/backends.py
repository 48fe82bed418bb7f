"""Which kernels are in use, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from normkit.kernels import fastpath
from normkit.kernels.devices import GPUS, on_gpu
from normkit.kernels.native import Native, native


@dataclass(frozen=True)
class Backend:
    """One kind of kernels: its device, whether it is in use, and the reason."""

    device: str
    name: str
    in_use: bool
    reason: str


@dataclass(frozen=True)
class Backends:
    """All of them; printed as a table."""

    rows: tuple[Backend, ...]

    def to_dict(self) -> dict[str, list[dict[str, object]]]:
        """The rows as plain data."""
        return {"backends": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [
            f"{row.device:<5} {row.name:<{width}}  {'in use' if row.in_use else 'not in use':<10}  {row.reason}"
            for row in self.rows
        ]
        return "\n".join(lines)


def show_backends() -> Backends:
    """Say which kernels are in use on each kind of device, and why.

    Returns:
        The backends, as data; ``print`` shows a table.

    Example:
        >>> import normkit
        >>> [row.name for row in normkit.show_backends().rows]
        ['C++ kernels', 'fast path', 'plain torch', 'Triton kernels', 'fast path', 'plain torch']
    """
    cpu, gpu = native(), _gpu()
    return Backends(
        (
            Backend("cpu", "C++ kernels", cpu.kernels is not None, cpu.reason),
            _fast_path(cpu),
            Backend("cpu", "plain torch", cpu.kernels is None, "the reference, if there are no kernels"),
            Backend("gpu", "Triton kernels", gpu.kernels is not None, gpu.reason),
            _gpu_fast_path(gpu),
            Backend("other", "plain torch", True, "there are no kernels for it"),
        )
    )


def _fast_path(cpu: Native) -> Backend:
    """The C++ fast path for eager calls; results are the same without it."""
    if cpu.kernels is None:
        return Backend("cpu", "fast path", False, "there are no C++ kernels for it to call")
    return Backend("cpu", "fast path", fastpath.in_use, fastpath.reason)


def _gpu_fast_path(gpu: Native) -> Backend:
    """Whether C++ carries out calls on the GPU, after Python has once shown it how; results are the same without it."""
    if gpu.kernels is None:
        return Backend("gpu", "fast path", False, "there are no Triton kernels for it to launch")
    from normkit.kernels.triton import recipes

    return Backend("gpu", "fast path", *recipes.state())


def _gpu() -> Native:
    """The GPU kernels; without a GPU they are not loaded, and there is no warning."""
    there = next((name for name in GPUS if getattr(torch, name).is_available()), None)
    return on_gpu() if there else Native(None, "torch sees no GPU that Triton compiles for")
