"""Exchanges the forward of norms by the hook that libraries offer with Hugging Face's ``kernels`` package."""

from __future__ import annotations

from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import nn

from normkit.errors import ArgumentError, StateError
from normkit.functional.call.precision import Cast
from normkit.tools.kernelize.layers import PureLayer, is_one
from normkit.tools.kernelize.report import Kernelized, KernelizeReport
from normkit.tools.model.info import NormInfo
from normkit.tools.model.recognise import identity
from normkit.tools.model.refusal import Refusal, RefusedError, refuse_strictly
from normkit.tools.model.tree import norms
from normkit.tools.model.wrapped import refuse_unready

M = TypeVar("M", bound=nn.Module)

DEVICES = ("cpu", "cuda", "rocm", "xpu")
"""What the hook calls the devices for which normkit has kernels."""


def kernelize(
    model: M, *, mode: Any = None, device: str | None = None, strict: bool = False
) -> tuple[M, KernelizeReport]:
    """Let norms of other libraries compute with normkit, by the hook of Hugging Face's ``kernels`` package.

    Transformers marks classes of layers whose forward may be exchanged: its RMS norms, with and without a gate. The
    ``kernels`` package exchanges it, on each module of the model. `kernelize` gives that package normkit's forward for
    each norm, made for what this norm computes: the order of rounding, eps, a weight stored around 0, a gate. Nothing
    is downloaded. Outputs and gradients are the same to rounding; the output has the dtype of the input.

    `normkit.convert` exchanges the modules themselves. It knows every method and the norms of every library, needs no
    other package, and its layers take normkit's arguments (``residual=``, ``mask=``). After `kernelize` all modules are
    the same objects of the same classes, with the same hooks and ``state_dict``; so nothing changes for code that asks
    for a class, such as PEFT or a plan of tensor parallelism. It reaches only classes that the hook knows, and other
    tools of normkit do not describe a norm with an exchanged forward: call them before.

    Args:
        model: changed in place, as by ``kernels.kernelize``.
        mode: a ``kernels.Mode``; None for training and ``torch.compile``, which includes all others.
        device: the type of the device that the model will be on, such as ``"cuda"``; None for where it is.
        strict: whether to raise where a norm would be refused.

    Returns:
        The model and the report: every change and every refusal; ``report.revert(model)`` undoes it.

    Raises:
        StateError: the ``kernels`` package is not installed; a compiled or lazy model; with `strict`, a norm that keeps
            its forward. The model is as it was before.
        ArgumentError: a device for which normkit has no kernels.

    Example:
        >>> import torch, normkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
        >>> try:
        ...     report = str(normkit.kernelize(model)[1])
        ... except normkit.errors.StateError as error:  # the package is not installed
        ...     report = str(error)
        >>> "normkit.convert" in report
        True
    """
    kernels = _package()
    refuse_unready(model, "kernelize")
    device = _device(model) if device is None else torch.device(device).type
    if device not in DEVICES:
        raise ArgumentError(f"kernelize needs a device for which normkit has kernels, got {device!r}: one of {DEVICES}")
    mode = kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE if mode is None else mode
    layers: dict[nn.Module, PureLayer] = {}
    known: dict[Any, PureLayer] = {}
    changes, refusals, kept = [], [], []
    for place, info in norms(model):
        module, cls = place.module, type(place.module)
        if is_one(vars(module).get("forward")):
            kept.append(place.name)
            continue
        key = identity(module)
        try:
            layer = known[key] if key in known else _layer_for(module, info)
        except RefusedError as reason:
            refusals.append(Refusal(place.name, cls.__name__, str(reason)))
        else:
            layers[module] = known[key] = layer
            changes.append(Kernelized(place.name, cls.__name__, _hook_of(module), str(layer)))
    refuse_strictly(strict, refusals, "no refusal, and there are {}", "leave strict out, or call normkit.convert")
    for module, layer in layers.items():
        # One norm at a time: the package would also exchange, or reset, all other layers that the hook knows.
        with kernels.use_kernel_mapping({_hook_of(module): dict.fromkeys(DEVICES, layer)}, inherit_mapping=False):
            kernels.kernelize(module, mode=mode, device=device, use_fallback=False)
    return model, KernelizeReport(tuple(changes), tuple(refusals), tuple(kept))


def _package() -> Any:
    try:
        package = import_module("kernels")
    except ModuleNotFoundError:
        package = None
    if not hasattr(package, "kernelize"):  # a folder of that name can be imported, too
        raise StateError(
            "kernelize needs Hugging Face's kernels package, which is not installed: pip install it in the version "
            "that your transformers asks for, or call normkit.convert, which needs no package"
        )
    return package


def _device(model: nn.Module) -> str:
    parameter = next(model.parameters(), None)
    return "cpu" if parameter is None or parameter.device.type == "meta" else parameter.device.type


def _hook_of(module: nn.Module) -> str:
    """The name by which the hook knows a class; empty if it does not."""
    return str(getattr(type(module), "kernel_layer_name", ""))


def _layer_for(module: nn.Module, info: NormInfo) -> PureLayer:
    """Normkit's layer for a norm.

    Raises:
        RefusedError: the hook does not know it, or normkit has no forward that computes the same.
    """
    if not _hook_of(module):
        raise RefusedError("its class has no name for the hook: normkit.convert replaces it")
    kind = info.kind or info.base
    if kind not in ("rms_norm", "layer_norm") or info.per_head or info.axis != "last" or info.extras:
        raise RefusedError(info.reason or f"{info.kind} has no layer for the hook: normkit.convert replaces it")
    if kind == "rms_norm" and (info.bias or not info.weight):
        raise RefusedError("normkit's layer for the hook takes a weight and no bias")
    if info.offset not in (0, 1):
        raise RefusedError(f"it adds {info.offset:g} to its weight, and normkit adds 0 or 1")
    cast: Cast = "before" if info.rounds_twice else "after"
    return PureLayer(kind, _eps_of(module, info), cast, info.offset == 1, info.gate)


def _eps_of(module: nn.Module, info: NormInfo) -> str | float | None:
    """The attribute that has the eps; or the number itself, if the code of the norm has it."""
    same = [key for key, value in vars(module).items() if isinstance(value, float) and value == info.eps]
    return next((key for key in same if "eps" in key), info.eps)
