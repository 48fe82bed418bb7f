"""Which kernels carry out the calls on a device."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from torch import Tensor

from normkit import settings
from normkit.kernels.backend import Kernels
from normkit.kernels.native import Native, native, unavailable

GPUS = ("cuda", "xpu")
"""What torch calls the devices that Triton compiles for; AMD's are "cuda", too."""


def is_on_gpu(x: Tensor) -> bool:
    """Whether a tensor is on a device that Triton compiles for."""
    return x.device.type in GPUS


def kernels_for(x: Tensor) -> Kernels | None:
    """Kernels for a tensor; None leaves it to plain torch."""
    return kernels_on("cpu" if x.is_cpu else x.device.type) if x.numel() else None


def kernels_on(device: str) -> Kernels | None:
    """Kernels for a kind of device, as `torch.device.type` names it."""
    if device == "cpu":
        return native().kernels
    return on_gpu().kernels if device in GPUS else None


@cache
def on_gpu() -> Native:
    """Load the Triton kernels; the first call that cannot gives one warning.

    ``NORMKIT_TRITON=0`` in the environment turns them off without a warning.
    """
    if settings.TRITON.turned_off:
        return Native(None, settings.TRITON.turned_off)
    if find_spec("triton") is None:
        reason = "triton is not installed"
    else:
        try:
            return Native(triton_kernels(), "compiled on first use, by Triton")
        except (ImportError, RuntimeError) as error:
            reason = f"triton cannot be loaded: {error}"
    return unavailable(" on this GPU", reason, "pip install triton")


def triton_kernels() -> Kernels:
    """The module that answers the calls of `Kernels` in Triton."""
    from normkit.kernels.triton import launch

    return launch
