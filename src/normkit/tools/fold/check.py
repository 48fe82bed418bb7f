"""How `fold` compares a layer, and the outputs of a model, before and after."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normkit.errors import ArgumentError, DtypeError
from normkit.tools.model.graph.recorder import Arguments, tensors_in
from normkit.tools.model.refusal import RefusedError


def check_tolerance(tolerance: Any) -> None:
    """Refuse what is no limit for a change of outputs.

    Raises:
        ArgumentError, DtypeError: with the value.
    """
    if tolerance is None:
        return
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        raise DtypeError(
            f"tolerance must be a number or None, got {type(tolerance).__name__}: leave it out, or give 1e-4"
        )
    if not tolerance >= 0:
        raise ArgumentError(f"tolerance must be at least 0, got {tolerance}: leave it out, or give 1e-4")


def doubled(value: Any) -> Any:
    """Arguments with their tensors in float64."""
    return _mapped(value, lambda tensor: tensor.double())


def drawn(value: Any) -> Any:
    """Arguments with random numbers in their tensors: on values that are all 0 or equal no difference would show."""

    def draw(tensor: Tensor) -> Tensor:
        generator = torch.Generator(tensor.device).manual_seed(0)
        return torch.randn(tensor.shape, generator=generator, device=tensor.device, dtype=torch.float64)

    return _mapped(value, draw)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_mapped(item, change) for item in value)
    return {key: _mapped(item, change) for key, item in value.items()} if isinstance(value, dict) else value


class InDouble(TorchFunctionMode):
    """Functions compute in float64 where they ask for float32, as some norms do whatever they are given."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = Tensor.double if func is Tensor.float else func
        given = {key: _double_for_single(value) for key, value in (kwargs or {}).items()}
        return func(*map(_double_for_single, args), **given)


def _double_for_single(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@torch.no_grad()
def agree(
    expected: Callable[..., Tensor], new: Callable[..., Tensor], given: Sequence[Arguments], limit: float, what: str
) -> None:
    """Compare two computations in float64 on inputs, and on random numbers of the first one's shape.

    Raises:
        RefusedError: they differ by more than the limit, or cannot be compared; the text begins with `what`.
    """
    try:
        for args, kwargs in (*given, drawn(given[0])):
            with InDouble():
                before, after = expected(*args, **kwargs), new(*args, **kwargs)
            if not before.numel() or not bool(before.isfinite().all()):
                raise RefusedError("on the example it gives nan, inf or no values, which cannot be compared")
            error = distance(after, before)
            if not error <= limit:
                raise RefusedError(
                    f"{what} computes more than its parameters say: folded, off by {error:.1g} of its output's size"
                )
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise RefusedError(f"{what} cannot be checked in float64: {error}") from error


def distance(new: Tensor, old: Tensor) -> float:
    """Largest difference, of the largest finite value; infinite where nan and inf are not the same."""
    finite = old.isfinite()
    if new.shape != old.shape or not torch.equal(finite, new.isfinite()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    new, old = new[finite].double(), old[finite].double()
    return float((new - old).abs().max() / old.abs().max().clamp(min=torch.finfo(torch.float64).tiny))


def coarsest(model: nn.Module, outputs: list[Tensor]) -> float:
    """The resolution of the coarsest dtype that takes part."""
    dtypes = {tensor.dtype for tensor in [*model.parameters(), *outputs] if tensor.is_floating_point()}
    return max(torch.finfo(dtype).eps for dtype in dtypes)


@contextlib.contextmanager
def same_draws(model: nn.Module) -> Iterator[None]:
    """A model that draws in evaluation too draws the same numbers in every run."""
    devices = {tensor.get_device() for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
    with torch.random.fork_rng(sorted(devices)):
        torch.manual_seed(0)
        yield


def compared(output: Any) -> list[Tensor]:
    """The outputs of a model that are compared."""
    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]


def outputs_before(tool: str, model: nn.Module, output: Any) -> list[Tensor]:
    """Copies of the outputs of a model, to be compared with those after a change.

    Raises:
        ArgumentError: there are none that can be compared.
    """
    before = [tensor.clone() for tensor in compared(output)]
    if not any(bool(tensor.isfinite().any()) for tensor in before):
        what = "only nan, inf or empty ones" if before else "none of floating point"
        remedy = "give an example with finite values" if before else "wrap the model so that it returns them"
        raise ArgumentError(
            f"{tool} compares the model's outputs before and after, got {what} from {type(model).__name__}: {remedy}"
        )
    return before
