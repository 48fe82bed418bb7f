"""Runs a norm of unknown arithmetic on random numbers and compares it with the definition of a method."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from normkit.kernels.formula import ACTIVATIONS
from normkit.tools.model.info import NormInfo

TOLERANCE = 1e-4
"""Relative to the expected size of a tensor. Float32 arithmetic, which some norms use for every dtype, errs by some
1e-6 here, another formula or eps by 1e-2 and more."""

HALF_TOLERANCE = 0.05
"""The same of outputs in half precision, where 1e-2 is one rounding of bfloat16."""

REROUNDED = 0.03
"""Share of outputs in another bit than the value rounded once. Float32 sums in another order flip some 1e-4 of
them, a second rounding a quarter."""

GATES = ("gate", "z", "g")
"""The names of a gate in transformers, mamba_ssm and flash-linear-attention."""

HALF = (torch.bfloat16, torch.float16)

WIDE = (torch.float64, torch.float32)
"""The dtypes in which formulas are compared, the better one first."""


class Rounding(NamedTuple):
    """Which share of a module's outputs in half precision has other bits than the method has with each order of casts.

    `once`: the weight is multiplied in float32, and the result is cast. `twice`: x_hat is cast, then multiplied by the
    weight in half precision. Both are 0 of a module that cannot be run in half precision, has no weight, or is of a
    method with running statistics.
    """

    once: float = 0.0
    twice: float = 0.0

    @property
    def is_twice(self) -> bool:
        """Whether the second order is the module's, or nearer to it."""
        return self.twice < self.once


def misfit(module: nn.Module, info: NormInfo) -> str:
    """Why the module cannot be run as a norm of one input, or of an input and a gate; empty if it can."""
    name = type(module).__name__
    arguments = _arguments(module)
    wanted = 1 if info.gate is None else 2
    if len(arguments) != wanted or any(a.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD for a in arguments):
        return f"the forward of {name} takes other arguments than one input{'' if wanted == 1 else ' and a gate'}"
    unknown = set(module._modules) - set(info.extras)
    if unknown:
        return f"{name} has a child {min(unknown)!r}, which no norm of normkit has"
    return ""


def takes_gate(module: nn.Module) -> bool:
    """Whether the second argument of its forward has a name that libraries give to a gate."""
    arguments = _arguments(module)
    return len(arguments) > 1 and arguments[1].name in GATES


def _arguments(module: nn.Module) -> list[inspect.Parameter]:
    return [*inspect.signature(type(module).forward).parameters.values()][1:]


def agreement(module: nn.Module, info: NormInfo) -> Rounding | None:
    """How the module rounds in half precision if it computes what `info` says, else None.

    It has to agree in outputs, gradients and running statistics, on a copy with random parameters (initial ones hide
    differences), in training and evaluation, on inputs of several ranks, one of them so small that eps decides. In
    float64, or float32 where it cannot do that, so that the result does not depend on the dtype of the module.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            agrees = next((found for dtype in WIDE if (found := _agrees(module, info, dtype)) is not None), False)
            return _rounding(module, info) if agrees else None
        except Exception:  # a foreign forward may raise anything; then it is not what was guessed
            return None


def computes_as(module: nn.Module, info: NormInfo, twin_of: Callable[[nn.Module], nn.Module]) -> bool:
    """Whether the module computes what a layer with its state does: outputs, gradients and running statistics.

    As in `agreement`, in float64; the smallest inputs are those where an eps decides that is added to a length.
    """
    tried = False
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        for shape, scale, training in itertools.product(_shapes(info), _scales(info.eps), (True, False)):
            subject = _copy(module, torch.float64).train(training)
            x = ((torch.randn(shape, dtype=torch.float64) + 0.5) * scale).requires_grad_()
            try:
                found = _run(subject, (x,))
            except Exception:  # this rank is not for it
                continue
            if found[0].shape != x.shape:  # nor is one on which the weight is broadcast against the wrong dimension
                continue
            try:
                extras = tuple(subject._modules[name] for name in info.extras)
                expected = _run(twin_of(_twin(subject)), (x,), extras)
            except Exception:  # the state is not what was guessed
                return False
            tried = True
            pairs = zip([found[0], *found[1], *found[2]], [expected[0], *expected[1], *expected[2]], strict=False)
            same = len(found[1]) == len(expected[1]) and len(found[2]) == len(expected[2])
            if not same or not all(_close(a, b, TOLERANCE, TOLERANCE * scale) for a, b in pairs):
                return False
    return tried


def _scales(eps: float | None) -> tuple[float, ...]:
    return (1.0, math.sqrt(eps), eps) if eps else (1.0,)


def _agrees(module: nn.Module, info: NormInfo, dtype: torch.dtype) -> bool | None:
    """Whether a copy of that dtype agrees on every input that it takes; None if it takes none."""
    tried = False
    for shape in _shapes(info):
        for scale in (1.0, math.sqrt(info.eps)) if info.eps else (1.0,):
            for training in (True, False):
                subject = _copy(module, dtype).train(training)
                inputs = _inputs(info, shape, scale, dtype)
                found = _agrees_on(subject, info, inputs, scale)
                if found is None:  # this rank is not for it
                    break
                tried = True
                # A gate that may be left out is no gate then.
                if not found or (len(inputs) == 2 and _agrees_on(subject, info, inputs[:1], scale) is False):
                    return False
    return tried or None


def _agrees_on(subject: nn.Module, info: NormInfo, inputs: tuple[Tensor, ...], scale: float) -> bool | None:
    """Whether a copy agrees on these inputs; None if it does not take them."""
    try:
        y, gradients, state = _run(subject, inputs)
    except Exception:
        return None
    if y.shape != inputs[0].shape:  # nor is one on which the weight is broadcast against the wrong dimension
        return None
    expected, expected_gradients, expected_state = _definition(_twin(subject), info, inputs)
    # Outputs and gradients of parameters are about 1 in size, and that of x is 1 over the size of x. Where
    # a region holds one or two elements they are next to nothing: there rounding is all there is.
    sizes = [1.0, 1 / scale, *(1.0,) * (len(gradients) - 1 + len(state))]
    pairs = zip([y, *gradients, *state], [expected, *expected_gradients, *expected_state], strict=True)
    return all(_close(a, b, TOLERANCE, size) for (a, b), size in zip(pairs, sizes, strict=True))


def _rounding(module: nn.Module, info: NormInfo) -> Rounding | None:
    """How a module whose arithmetic is known rounds in half precision; None if outputs in its own dtype are others.

    In half precision also where the module is not, because the model may be cast after its conversion.
    """
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    found = _rounding_in(module, info, dtype)
    if found is None or dtype in HALF or not info.weight or info.may_keep_statistics:
        return found
    for half in HALF:
        with contextlib.suppress(Exception):  # of a module that cannot be cast
            cast_found = _rounding_in(module, info, half)
            if cast_found is not None:
                return cast_found
    return found


@torch.no_grad()
def _rounding_in(module: nn.Module, info: NormInfo, dtype: torch.dtype) -> Rounding | None:
    """The same in one dtype; None if the module takes no input of it, or is not as near as rounding allows."""
    shares: list[tuple[float, float]] = []
    for shape in _shapes(info):
        subject = _copy(module, dtype).eval()
        inputs = _inputs(info, shape, 1.0, dtype)
        try:
            y = _outputs(subject, inputs)
        except Exception:  # this rank is not for it
            continue
        if y.shape != shape:
            continue
        once, twice = (_defined_outputs(_twin(subject), info, inputs, order) for order in (False, True))
        if y.dtype != dtype or not _close(y, once, HALF_TOLERANCE if dtype in HALF else TOLERANCE, 1.0):
            return None
        flipped = [(y != expected.to(dtype)).double().mean().item() for expected in (once, twice)]
        shares.append((flipped[0], flipped[1]))
    if not shares:
        return None
    return Rounding(*map(max, zip(*shares, strict=True))) if dtype in HALF else Rounding()


def gives_channels_last(module: nn.Module, info: NormInfo) -> bool:
    """Whether an image in torch's usual layout comes back in channels-last: the next convolution's speed depends on it.

    The module is one whose arithmetic has been recognised.
    """
    if info.channels == 1:
        return False
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        dtype = next((p.dtype for p in module.parameters()), torch.float32)
        subject = _copy(module, dtype)
        try:
            y: Tensor = type(subject).forward(subject, torch.randn(2, info.channels, 3, 5).to(dtype))
        except Exception:  # not for images
            return False
    return y.is_contiguous(memory_format=torch.channels_last)


def _shapes(info: NormInfo) -> Iterator[tuple[int, ...]]:
    """Inputs of every number of dimensions that the norm may be made for."""
    if info.axis == "last":
        for sizes in (info.shape,) if info.shape else ((5,), (8,)):
            yield from ((7, *sizes), (2, 3, *sizes), (2, 3, 5, *sizes))
        return
    positions = ((), (6,), (5, 3), (2, 3, 2))
    for sizes in positions if info.rank is None else {(), (6,)} if info.rank == 1 else {positions[info.rank]}:
        yield (4, *info.shape, *sizes)


def _inputs(info: NormInfo, shape: tuple[int, ...], scale: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The input, and the gate if there is one."""
    x = ((torch.randn(shape) + 0.5) * scale).to(dtype)
    return (x,) if info.gate is None else (x, torch.randn(shape).to(dtype))


def _copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module on the CPU in another dtype, with random parameters and statistics; no hooks."""

    def drawn(t: Tensor) -> Tensor:
        return (torch.rand(t.shape) + 0.5).to(dtype if t.is_floating_point() else t.dtype)

    new = copy.copy(module)
    state = vars(new)
    for name, value in vars(nn.Module()).items():
        if "hooks" in name:
            state[name] = OrderedDict() if isinstance(value, dict) else value
    children = copy.deepcopy(module._modules)
    state["_modules"] = {key: None if child is None else child.to("cpu", dtype) for key, child in children.items()}
    state["_parameters"] = {key: None if p is None else nn.Parameter(drawn(p)) for key, p in module._parameters.items()}
    state["_buffers"] = {key: None if b is None else drawn(b) for key, b in module._buffers.items()}
    state["_start"] = {key: None if b is None else b.clone() for key, b in new._buffers.items()}
    return new


def _twin(subject: nn.Module) -> nn.Module:
    """A second one with the parameters of the first, and with the statistics that it started with."""
    twin = copy.copy(subject)
    parameters = {key: None if p is None else nn.Parameter(p.detach().clone()) for key, p in twin._parameters.items()}
    vars(twin).update(_parameters=parameters, _buffers=vars(subject)["_start"])
    return twin


def _run(
    module: nn.Module, inputs: tuple[Tensor, ...], then: Sequence[nn.Module | None] = ()
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Output, gradients of inputs and parameters, and statistics afterwards; the past of random numbers is fixed."""
    inputs = tuple(t.detach().clone().requires_grad_() for t in inputs)
    y = _outputs(module, inputs, then)
    return y.detach(), _gradients(module, inputs, y), [b for b in module._buffers.values() if b is not None]


def _outputs(module: nn.Module, inputs: tuple[Tensor, ...], then: Sequence[nn.Module | None] = ()) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        y: Tensor = type(module).forward(module, *inputs)
        for child in then:
            y = y if child is None else child(y)
    return y


def _gradients(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> list[Tensor]:
    wanted = [*inputs, *(p for p in module._parameters.values() if p is not None)]
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).sin().reshape(y.shape)
    found = torch.autograd.grad((y.double() * weights).sum(), wanted, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]


def _definition(
    module: nn.Module, info: NormInfo, inputs: tuple[Tensor, ...]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The same of the method that `info` names, in float64 and plain torch; extras get half precision rounded once."""
    inputs = tuple(t.clone().requires_grad_() for t in inputs)
    y = _defined_outputs(module, info, inputs)
    return y.detach(), _gradients(module, inputs, y), [b for b in module._buffers.values() if b is not None]


def _defined_outputs(module: nn.Module, info: NormInfo, inputs: tuple[Tensor, ...], cast_first: bool = False) -> Tensor:
    """Its output; with `cast_first` x_hat and the weight are cast to the dtype of the input before their product."""
    dtype = inputs[0].dtype
    if info.eps is None:
        info = replace(info, eps=torch.finfo(torch.promote_types(dtype, torch.float32)).eps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        y = _normalized(module, info, *(t.double() for t in inputs), to=dtype if cast_first else torch.float64)
        dtype = dtype if dtype in HALF else torch.float64
        for name in info.extras:
            y = module._modules[name].to(dtype)(y.to(dtype))  # type: ignore[union-attr]
    return y


def _normalized(
    module: nn.Module, info: NormInfo, x: Tensor, gate: Tensor | None = None, *, to: torch.dtype = torch.float64
) -> Tensor:
    """``x_hat * weight + bias``, each step rounded to a dtype, times the gate."""

    def rounded(t: Tensor) -> Tensor:
        return t.to(to).double()

    weight, bias = (None if p is None else p.double() for p in map(module._parameters.get, ("weight", "bias")))
    features = (1, -1, *(1,) * (x.dim() - 2)) if info.axis == "first" else info.shape
    factor = None if gate is None or info.gate is None else ACTIVATIONS[info.gate.activation](gate)
    if info.gate is not None and info.gate.first and factor is not None:
        x, factor = x * factor, None
    if info.may_keep_statistics:
        z = _with_statistics(module, info, x)
    else:
        view, dims = x, (1,) if info.axis == "first" else info.last_dims
        if info.groups is not None:
            view, dims = x.reshape(x.shape[0], info.groups, -1), (-1,)
        elif info.gate is not None and info.gate.group_size is not None:
            view = x.unflatten(-1, (-1, info.gate.group_size))
        mean = view.mean(dims, keepdim=True) * info.centers
        variance = (view - mean).square().mean(dims, keepdim=True)
        z = ((view - mean) / (variance + (info.eps or 0.0)).sqrt()).reshape(x.shape)
    if weight is not None:
        z = rounded(rounded(z) * rounded(weight + info.offset).reshape(features))
    z = z if bias is None else rounded(rounded(z) + rounded(bias).reshape(features))
    return z if factor is None else z * factor


def _with_statistics(module: nn.Module, info: NormInfo, x: Tensor) -> Tensor:
    """torch's own functions on plain tensors: the question is what a subclass adds to them."""
    buffers = module._buffers
    running = [buffers.get(name) for name in ("running_mean", "running_var")]
    own = module.training or running[0] is None
    # Copies, also of float64: backward needs what forward used.
    mean, var = (None if b is None else b.to(torch.float64, copy=True) for b in running)
    momentum, eps = cast("float | None", module.momentum), info.eps or 0.0
    if not info.over_samples:
        y = nn.functional.instance_norm(x, mean, var, None, None, own, momentum or 0.0, eps)
    else:
        counter = buffers.get("num_batches_tracked")
        if counter is not None and module.training:
            counter += 1
            momentum = 1 / float(counter) if momentum is None else momentum
        y = nn.functional.batch_norm(x, mean, var, None, None, own, momentum or 0.0, eps)
    for buffer, updated in zip(running, (mean, var), strict=True):
        if buffer is not None and updated is not None:
            buffer.copy_(updated)
    return y


def _close(a: Tensor, b: Tensor, tolerance: float, size: float) -> bool:
    """Whether two tensors agree, relative to the largest value of the second, or to `size` if that is larger."""
    a, b = a.double(), b.double()
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max().clamp_min(size))
