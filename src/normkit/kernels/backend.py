"""Which kernels carry out the calls on a device."""

from __future__ import annotations

import warnings
from dataclasses import fields
from functools import cache
from importlib.util import find_spec

from torch import Tensor

from normkit import settings
from normkit.kernels.native import Kernels, Native, native

GPUS = ("cuda", "xpu")
"""What torch calls the devices that Triton compiles for; AMD's are "cuda", too."""


def kernels_for(x: Tensor) -> Kernels | None:
    """Kernels for a tensor; None leaves it to plain torch."""
    return kernels_on(x.device.type) if x.numel() else None


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
    warnings.warn(
        f"normkit runs on plain torch on this GPU, which is right but slower ({reason}). "
        "Remedy: pip install triton; normkit.show_backends() tells more.",
        RuntimeWarning,
        stacklevel=3,
    )
    return Native(None, reason)


def triton_kernels() -> Kernels:
    """The Triton kernels behind the calls of `Kernels`."""
    from normkit.kernels.triton import launch

    names = [field.name for field in fields(Kernels) if hasattr(launch, field.name)]
    return Kernels(**{name: getattr(launch, name) for name in names})
