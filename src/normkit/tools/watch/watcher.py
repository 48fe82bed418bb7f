"""Statistics of every norm while a model trains, at a fixed interval of steps; between records only a counter runs."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

from normkit.errors import ArgumentError, StateError, whole_number
from normkit.kernels.context import is_in_backward, is_traced, is_transformed
from normkit.tools.model.info import NormInfo
from normkit.tools.model.tree import norms as norms_in
from normkit.tools.model.wrapped import unwrapped
from normkit.tools.watch import heat_map
from normkit.tools.watch.figures import Row, records_of
from normkit.tools.watch.record import NormRecord
from normkit.tools.watch.sinks import Destination, opened

CALLS = 16
"""Calls of one norm that are recorded in one step: a recurrent network makes thousands."""

WAITING = 2
"""Watched steps that wait for their gradients besides the newest, as where two forwards share a backward."""


class Step:
    """A watched step: its rows, in the order of the calls, and the hooks that wait for gradients."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.rows: dict[nn.Module, list[Row]] = {}
        self.order: list[Row] = []
        self.handles: list[RemovableHandle] = []

    @property
    def done(self) -> bool:
        """Whether a backward has gone through it."""
        return any(row.done for row in self.order)


class Watch:
    """The result of `watch`: the records so far, and `close` to end it.

    Attributes:
        every: the interval between watched steps.
        steps: number of training steps so far.
    """

    def __init__(
        self, model: nn.Module, every: int, to: Destination | Iterable[Destination] | None, start: int, keep: int
    ):
        self.every, self.steps, self._first, self._keep = every, start, start, keep
        self._root, self._model = model, unwrapped(model)
        self._norms: dict[nn.Module, tuple[str, NormInfo]] = {
            place.module: (place.name or "(the model)", info) for place, info in norms_in(self._model)
        }
        if not self._norms:
            raise StateError(
                f"watch needs a model with norms, {type(self._model).__name__} has none: insert some with "
                "normkit.insert; norms of weights (weight_norm) are not watched"
            )
        self._kept: list[NormRecord] = []
        self._stride = every
        self._open: list[Step] = []
        self._listening = ExitStack()
        with ExitStack() as stack:
            self._sinks = opened(to, stack)
            self._attach(stack)
            self._stack = stack.pop_all()

    @property
    def records(self) -> tuple[NormRecord, ...]:
        """The records in memory, oldest first: all, until there are more than `keep`; then of every second watched
        step, then of every fourth, so that they always span the whole run."""
        return tuple(self._kept)

    def heat_map(
        self, path: str | PathLike[str] | None = None, *, value: str = "output_std", log: bool | None = None
    ) -> str:
        """Draw one figure of the records in memory: norms as rows, time as columns, the number as colour.

        Args:
            path: an SVG file to write; None to write none.
            value: name of the figure, as `NormRecord` has it.
            log: whether colours follow the logarithm; None for where all are positive and span a factor above 30.

        Returns:
            One ``<svg>`` element. Cells without a number are left open, those with inf or nan are red.

        Raises:
            ArgumentError: no such figure, or a logarithmic scale for numbers that are not positive.
            StateError: no records, or none with this figure.
        """
        picture = heat_map.draw(self._kept, value, log)
        if path is not None:
            Path(path).write_text(picture, encoding="utf-8")
        return picture

    def close(self) -> None:
        """Write what has come in so far, close the files, and take every hook off the model. Again changes nothing."""
        with self._stack:
            self._remove_hooks()
            self._emit(len(self._open))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None and self.steps == self._first:
            warnings.warn(
                "watch saw no training step: no forward of the model that it was given ran in train mode with "
                "gradients; of a compiled or wrapped model give the outermost module, as in watch(compiled)",
                stacklevel=2,
            )

    def __str__(self) -> str:
        head = f"{'norm':<32} {'input mean':>10} {'std':>9} {'output mean':>11} {'std':>9} {'gradient':>9} {'dead':>5}"
        rows = self._kept[-1:] and [record for record in self._kept if record.step == self._kept[-1].step]
        lines = [
            f"{r.norm:<32} {_short(r.input_mean):>10} {_short(r.input_std):>9} {_short(r.output_mean):>11} "
            f"{_short(r.output_std):>9} {_short(r.grad_output):>9} {_short(r.dead):>5}"
            for r in rows
        ]
        at = f"step {rows[-1].step} of {self.steps}" if rows else f"no record yet after {self.steps} steps"
        return "\n".join((head, *lines, f"{len(self._norms)} norms, {at}"))

    def _attach(self, stack: ExitStack) -> None:
        """Register for every forward of the root."""
        compiled = getattr(self._root, "_compiled_call_impl", None)
        if compiled is None:
            stack.callback(self._root.register_forward_pre_hook(_OnRoot(self), with_kwargs=True).remove)
            return

        # Hooks of a module that was compiled in place are part of its graph.
        def call(*args: Any, **kwargs: Any) -> Any:
            self._before(args, kwargs)
            try:
                return compiled(*args, **kwargs)
            finally:
                self._remove_hooks()

        self._root._compiled_call_impl = call
        stack.callback(setattr, self._root, "_compiled_call_impl", compiled)

    def _before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or is_in_backward():
            # Traced, or computed again by activation checkpointing.
            return
        if self._open:
            done = sum(1 for step in self._open if step.done)
            self._emit(max(done, len(self._open) - WAITING))
        if not self._model.training or not torch.is_grad_enabled():
            return
        step = self.steps
        self.steps += 1
        if step % self.every == 0 and not _is_traced():
            self._listen(Step(step), args, kwargs)

    def _listen(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hook the norms for this one forward."""
        self._remove_hooks()
        stack = self._listening
        if _is_compiled(self._root):
            # A compiled graph does not know hooks that came later.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for norm in self._norms:
            before, after = self._hooks(step, norm)
            stack.callback(norm.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(norm.register_forward_hook(after).remove)
            if norm is self._root:
                # Hooks that are added while a module runs its own come too late for this call.
                before(norm, args, kwargs)
        self._open.append(step)
        stack.callback(self._root.register_forward_hook(self._after, always_call=True).remove)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        """Take the hooks of a watched forward off, if they are on."""
        self._listening.close()

    def _hooks(self, step: Step, norm: nn.Module) -> tuple[Callable[..., None], Callable[..., None]]:
        name, info = self._norms[norm]
        running: list[Row] = []

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls = step.rows.setdefault(norm, [])
            if len(calls) == CALLS or is_in_backward():
                return
            row = Row(step.number, name, type(norm).__name__, len(calls), info)
            calls.append(row)
            step.order.append(row)
            running.append(row)
            with _outside_autograd():
                row.input(module, args, kwargs)
            if len(calls) == 1:
                for key in ("weight", "bias"):
                    step.handles += _on_gradient(module._parameters.get(key), calls, f"grad_{key}")

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if not running:
                return
            row = running.pop()
            with _outside_autograd():
                y = row.output(output)
            step.handles += _on_gradient(y, [row], "grad_output")

        return before, after

    def _emit(self, count: int) -> None:
        """Make the records of the oldest open steps and write them to the sinks."""
        for _ in range(count):
            step = self._open.pop(0)
            for handle in step.handles:
                handle.remove()
            records = records_of(step.order)
            self._remember(step.number, records)
            for sink in self._sinks:
                sink(records)

    def _remember(self, step: int, records: list[NormRecord]) -> None:
        if step % self._stride == 0:
            self._kept += records
        while len(self._kept) > self._keep and len({record.step for record in self._kept}) > 1:
            self._stride *= 2
            self._kept = [record for record in self._kept if record.step % self._stride == 0]


class _OnRoot:
    """The hook that stays on the model; a copy or a file of the model gets one that does nothing."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.watch._before(args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _without_watch, ()


def _without_watch() -> Callable[..., None]:
    return _nothing


def _nothing(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The hook of a copy, in place of `_OnRoot`."""


def _on_gradient(tensor: Tensor | None, rows: list[Row], name: str) -> list[RemovableHandle]:
    """Register for the gradient of a tensor, if it will have one."""
    if tensor is None or not tensor.requires_grad:
        return []

    def hook(grad: Tensor) -> None:
        with _outside_autograd():
            for row in rows:
                row.gradient(name, grad)

    return [tensor.register_hook(hook)]


@contextlib.contextmanager
def _outside_autograd() -> Iterator[None]:
    """Compute outside any autograd graph and outside any dispatch mode: selective checkpointing would expect these
    operators when it computes the forward again, and a counter of operations would count them."""
    with torch.no_grad(), _disable_current_modes():
        yield


def _is_traced() -> bool:
    """Whether tensors are not plain: under `torch.func` or `torch.jit.trace`."""
    return is_transformed() or is_traced()


def _is_compiled(root: nn.Module) -> bool:
    if "torch._dynamo" not in sys.modules:
        return False
    kind = torch._dynamo.OptimizedModule
    return any(isinstance(m, kind) or m._compiled_call_impl is not None for m in root.modules())


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def watch(
    model: nn.Module,
    *,
    every: int = 50,
    to: Destination | Iterable[Destination] | None = None,
    start: int = 0,
    keep: int = 10_000,
) -> Watch:
    """Take statistics of every norm of a model while it trains.

    A step is a forward of the model in train mode with gradients; steps are counted from 0, and those that `every`
    divides are watched. Between them only a counter runs. Recomputation by activation checkpointing, evaluation, and
    forwards under ``torch.no_grad`` are not counted.

    Outputs, gradients, statistics and random numbers are those of the model alone, bit for bit. The one exception is
    a compiled model: its watched steps run uncompiled, and round as that does.

    Args:
        model: the module that the training loop calls, so the outermost one of a wrapped or compiled model. All norms
            that `normkit.convert` finds are watched, also those that it does not understand.
        every: how many steps apart the watched ones are.
        to: where each `NormRecord` goes, besides the memory: a path that ends in ``.csv`` or ``.jsonl``, added to if it
            is there and complete after every watched step; anything with ``add_scalar``, as a TensorBoard
            ``SummaryWriter``; a function of a record; or several of these.
        start: number of the first step, in a run that goes on.
        keep: how many records stay in memory; beyond that, those of every second step are dropped.

    Returns:
        A `Watch`, for ``with`` or with ``close()``, which takes all hooks off the model and closes the files. A record
        is handed on at the first forward after its gradients have arrived, at the latest by ``close()``.

    Raises:
        ArgumentError: every or keep below 1, start below 0, a path of another ending or in no folder.
        DtypeError: a `to` of another kind, a model that is not a module.
        StateError: a model without norms, a file with other contents.

    Example:
        >>> import torch, normkit
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        >>> with normkit.watch(model, every=2) as watched:
        ...     for _ in range(5):
        ...         model(torch.randn(16, 4)).mean().backward()
        >>> [(record.step, record.norm, record.dead) for record in watched.records]
        [(0, '1', 0), (2, '1', 0), (4, '1', 0)]
        >>> watched.heat_map(value="output_std").startswith("<svg")
        True
    """
    for name, value, least in (("every", every, 1), ("keep", keep, 1), ("start", start, 0)):
        if whole_number(name, value) < least:
            raise ArgumentError(f"{name} must be at least {least}, got {value}: every=50 costs next to nothing")
    return Watch(model, every, to, start, keep)
