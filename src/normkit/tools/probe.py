"""Runs a norm of unknown make on random numbers and compares it with the definition of a method."""

from __future__ import annotations

import copy
import enum
import inspect
import math
import warnings
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from normkit.tools.facts import Facts

TOLERANCE = 1e-4
"""Of the largest value. Float32 arithmetic errs by some 1e-6 here, another formula or eps by 1e-2 and more."""

HALF_TOLERANCE = 0.05
"""The same in half precision, where 1e-2 is one rounding of bfloat16."""

REROUNDED = 0.03
"""Share of outputs in another bit than the value rounded once. Float32 sums in another order flip some 1e-4 of
them, a second rounding a quarter."""

HALF = (torch.float16, torch.bfloat16)


class Agreement(enum.Enum):
    """How a module compares with a definition."""

    NONE = "none"
    ROUNDED_ONCE = "rounded once"
    ROUNDED_TWICE = "rounded twice"


def misfit(module: nn.Module, facts: Facts) -> str:
    """Why the module cannot be run as a norm of one input; empty if it can."""
    name = type(module).__name__
    arguments = [*inspect.signature(type(module).forward).parameters.values()][1:]
    if len(arguments) != 1 or arguments[0].kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
        return f"the forward of {name} takes other arguments than one input"
    stranger = set(module._modules) - set(facts.extras)
    if stranger:
        return f"{name} has a child {min(stranger)!r}, which no norm of normkit has"
    return ""


def agreement(module: nn.Module, facts: Facts) -> Agreement:
    """Whether the module computes what the facts say: outputs, gradients and running statistics.

    On a copy with random parameters (initial ones hide differences), in training and evaluation, on inputs of
    several ranks, one of them so small that eps decides.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            return _agreement(module, facts)
        except Exception:  # a foreign forward may raise anything; then it is not what was guessed
            return Agreement.NONE


def _agreement(module: nn.Module, facts: Facts) -> Agreement:
    tried, flipped = 0, 0.0
    for shape in _shapes(facts):
        for scale in (1.0, math.sqrt(facts.eps)) if facts.eps else (1.0,):
            for training in (True, False):
                subject = _copy(module).train(training)
                dtype = next((p.dtype for p in subject.parameters()), torch.float32)
                x = ((torch.randn(shape) + 0.5) * scale).to(dtype)
                try:
                    y, gradients, state = _run(subject, x)
                except Exception:  # this rank is not for it
                    break
                if y.shape != x.shape:  # nor is one on which the weight is broadcast against the wrong dimension
                    break
                tried += 1
                expected, expected_gradients, expected_state = _definition(_copy(module, subject), facts, x)
                pairs = zip([*gradients, *state], [*expected_gradients, *expected_state], strict=True)
                if y.dtype != x.dtype or not _close(y, expected, dtype):
                    return Agreement.NONE
                if not all(_close(a, b, dtype) for a, b in pairs):
                    return Agreement.NONE
                if dtype in HALF:
                    flipped = max(flipped, (y != expected.to(dtype)).double().mean().item())
    if not tried:
        return Agreement.NONE
    return Agreement.ROUNDED_TWICE if flipped > REROUNDED else Agreement.ROUNDED_ONCE


def gives_channels_last(module: nn.Module, facts: Facts) -> bool:
    """Whether an image in torch's usual layout comes back in channels-last: the next convolution's speed depends on it.

    The module is one whose arithmetic has been recognised.
    """
    if facts.channels == 1:
        return False
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        subject = _copy(module)
        dtype = next((p.dtype for p in subject.parameters()), torch.float32)
        try:
            y: Tensor = type(subject).forward(subject, torch.randn(2, facts.channels, 3, 5).to(dtype))
        except Exception:  # not for images
            return False
    return y.is_contiguous(memory_format=torch.channels_last)


def _shapes(facts: Facts) -> Iterator[tuple[int, ...]]:
    """Inputs of every number of dimensions that the norm may be made for."""
    if facts.axis == "last":
        yield from ((7, *facts.shape), (2, 3, *facts.shape), (2, 3, 5, *facts.shape))
        return
    positions = ((), (6,), (5, 3), (2, 3, 2))
    for sizes in positions if facts.rank is None else {(), (6,)} if facts.rank == 1 else {positions[facts.rank]}:
        yield (4, *facts.shape, *sizes)


def _copy(module: nn.Module, twin: nn.Module | None = None) -> nn.Module:
    """The module on the CPU with random parameters and statistics, those of the twin if there is one; no hooks."""
    new = copy.copy(module)
    state = vars(new)
    for name, value in vars(nn.Module()).items():
        if "hooks" in name:
            state[name] = OrderedDict() if isinstance(value, dict) else value
    state["_modules"] = {key: copy.deepcopy(child) for key, child in module._modules.items()}
    if twin is not None:
        state["_parameters"] = {
            key: None if p is None else nn.Parameter(p.detach().clone()) for key, p in twin._parameters.items()
        }
        state["_buffers"] = dict(getattr(twin, "_start", {}))
        new.train(twin.training)
        return new
    state["_parameters"] = {
        key: None if p is None else nn.Parameter((torch.rand(p.shape) + 0.5).to(p.dtype))
        for key, p in module._parameters.items()
    }
    state["_buffers"] = {
        key: None if b is None else (torch.rand(b.shape) + 0.5).to(b.dtype) for key, b in module._buffers.items()
    }
    state["_start"] = {key: None if b is None else b.clone() for key, b in new._buffers.items()}
    return new


def _run(module: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Output, gradients of input and parameters, and statistics afterwards; the past of random numbers is fixed."""
    x = x.clone().requires_grad_()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        y: Tensor = type(module).forward(module, x)
    return y.detach(), _gradients(module, x, y), [b for b in module._buffers.values() if b is not None]


def _gradients(module: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    wanted = [x, *(p for p in module._parameters.values() if p is not None)]
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).sin().reshape(y.shape)
    found = torch.autograd.grad((y.double() * weights).sum(), wanted, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]


def _definition(module: nn.Module, facts: Facts, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The same of the method the facts name, in float64 and plain torch; extras in the module's dtype."""
    x = x.clone().requires_grad_()
    wide = x.double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        y = _normalized(module, facts, wide)
        for name in facts.extras:
            y = module._modules[name].double()(y)  # type: ignore[union-attr]
    return y.detach(), _gradients(module, x, y), [b for b in module._buffers.values() if b is not None]


def _normalized(module: nn.Module, facts: Facts, x: Tensor) -> Tensor:
    weight, bias = (None if p is None else p.double() for p in map(module._parameters.get, ("weight", "bias")))
    features = (1, -1, *(1,) * (x.dim() - 2)) if facts.axis == "first" else facts.shape
    view, dims = x, tuple(range(2, x.dim()))
    if facts.kind == "batch_norm":
        z = _batch_normalized(module, facts, x)
    else:
        if facts.kind == "group_norm":
            view, dims = x.reshape(x.shape[0], facts.groups or 1, -1), (-1,)
        elif facts.kind != "instance_norm":
            dims = (1,) if facts.axis == "first" else tuple(range(-len(facts.shape), 0))
        mean = view.mean(dims, keepdim=True) * (facts.kind != "rms_norm")
        variance = (view - mean).square().mean(dims, keepdim=True)
        eps = torch.finfo(torch.float32).eps if facts.eps is None else facts.eps
        z = ((view - mean) / (variance + eps).sqrt()).reshape(x.shape)
    if weight is not None:
        z = z * (weight + facts.offset).reshape(features)
    return z if bias is None else z + bias.reshape(features)


def _batch_normalized(module: nn.Module, facts: Facts, x: Tensor) -> Tensor:
    """torch's own on plain tensors: what is asked here is what the subclass does round it."""
    buffers = module._buffers
    running = [buffers.get(name) for name in ("running_mean", "running_var")]
    counter = buffers.get("num_batches_tracked")
    own = module.training or running[0] is None
    momentum = module.momentum
    if counter is not None and module.training:
        counter += 1
        momentum = 1 / float(counter) if momentum is None else momentum
    wide = [None if b is None else b.double() for b in running]
    y = nn.functional.batch_norm(x, wide[0], wide[1], None, None, own, momentum or 0.0, facts.eps or 0.0)  # type: ignore[arg-type]
    for buffer, moved in zip(running, wide, strict=True):
        if buffer is not None and moved is not None:
            buffer.copy_(moved)
    return y


def _close(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    a, b = a.double(), b.double()
    tolerance = HALF_TOLERANCE if dtype in HALF else TOLERANCE
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1e-30))
