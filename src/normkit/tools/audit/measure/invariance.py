"""Whether the output of each norm for one sample has the same bits in any batch, cut in pieces, padded, compiled."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normkit.evaluation import call, preserving
from normkit.layers import PowerNorm
from normkit.tools.audit.measure.facts import SEPARATE, Seen, Subject
from normkit.tools.audit.measure.sample_call import SampleCall
from normkit.tools.model.frozen import is_frozen
from normkit.tools.model.recognise import identity
from normkit.tools.model.valid import takes_extras

SIZES = (2, 3, 7, 16, 33, 64, 256, 1024, 4096, 8192)
"""Of batches: powers of two, and numbers next to none of them."""

MEMORY = 1 << 26
"""Bytes of the largest input of a trial."""

PADDING = 1, 13
"""Positions that are added."""

COMPILED = 8
"""The batch in which a compiled norm is tried."""

BATCH = "in a batch of"
BACKEND = "inductor"
MANY = 1 << 20
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Trial:
    """One way to compute the same output.

    Attributes:
        way: such as ``"in a batch of 64"``.
        same: whether the bits are those of the sample alone; None if it could not run.
        difference: the largest one, absolute; infinite where only one of two values is finite.
        reason: why it could not run.
    """

    way: str
    same: bool | None
    difference: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class LayerInvariance:
    """What was found of one norm.

    Attributes:
        module, layer: dotted name and class.
        shape, dtype: of the sample that it was run on; empty if it was not run.
        largest_batch: the largest batch that the bound on memory allows.
        trials: in the order in which they were run.
        by_definition: why the output depends on the batch whatever computes it; empty if it need not.
        reason: why it was not run; empty if it was.
    """

    module: str
    layer: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    largest_batch: int = 1
    trials: tuple[Trial, ...] = ()
    by_definition: str = ""
    reason: str = ""

    @property
    def same(self) -> bool | None:
        """Whether all trials that ran gave the same bits; None if none ran."""
        ran = [trial.same for trial in self.trials if trial.same is not None]
        return all(ran) if ran else None

    @property
    def in_any_batch(self) -> bool | None:
        """The same of the trials in batches, in eager mode; False where the output depends on the batch by definition.

        Cut in pieces, padded or compiled, a norm may have other bits and still keep to one sample.
        """
        ran = [trial.same for trial in self.trials if trial.way.startswith(BATCH) and trial.same is not None]
        return False if self.by_definition else all(ran) if ran else None

    @property
    def first(self) -> str:
        """The first way that gave other bits; empty if none did."""
        return next((trial.way for trial in self.trials if trial.same is False), "")

    @property
    def difference(self) -> float:
        """The largest of all trials."""
        return max((trial.difference for trial in self.trials), default=0.0)

    def __str__(self) -> str:
        if self.by_definition:
            return f"depends on the batch by definition: {self.by_definition}"
        if self.same is None:
            return f"not run: {self.reason or self.trials[0].reason}"
        ran = sum(trial.same is not None for trial in self.trials)
        text = f"the same bits in all of {ran} trials"
        if not self.same:
            others = sum(trial.same is False for trial in self.trials)
            text = f"other bits {self.first}, in {others} of {ran} trials, by at most {self.difference:.2g}"
            text = f"the same bits in batches; {text}" if self.in_any_batch else text
        missing = [f"{trial.way}: {trial.reason}" for trial in self.trials if trial.same is None]
        return "; ".join([text, *(f"not run {each}" for each in missing)])


@dataclass(frozen=True)
class Invariance:
    """Batch invariance of the norms of a model, on the device and with the number of threads that it was measured with.

    Attributes:
        device: of the inputs; empty if nothing was run.
        threads: of torch on the CPU.
        memory: bytes of the largest input of a trial, which bounds the batches.
        layers: every norm, in the order of the model.
        reason: why nothing was run; empty if something was.
    """

    device: str
    threads: int
    memory: int
    layers: tuple[LayerInvariance, ...]
    reason: str = ""

    @property
    def same(self) -> bool:
        """Whether all norms were run and gave the same bits in all trials that ran."""
        return bool(self.layers) and all(layer.same for layer in self.layers)

    @property
    def in_any_batch(self) -> bool:
        """Whether all norms were run and gave the same bits in all batches."""
        return bool(self.layers) and all(layer.in_any_batch for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        data = asdict(self) | {"same": self.same, "in_any_batch": self.in_any_batch}
        for entry, layer in zip(data["layers"], self.layers, strict=True):
            entry |= {"same": layer.same, "in_any_batch": layer.in_any_batch}
            entry |= {"first": layer.first, "difference": layer.difference}
        return data

    def __str__(self) -> str:
        if self.reason:
            return f"batch invariance: not run, {self.reason}"
        if not self.layers:
            return "batch invariance: not run, the model has no norms"
        lines = [
            f"batch invariance on {self.device}, {self.threads} threads of the CPU, "
            f"inputs of at most {self.memory / 2**20:g} MiB"
        ]
        table = [("module", "layer", "sample", "batches to", "result")]
        for layer in self.layers:
            sample = f"{'x'.join(map(str, layer.shape))} {layer.dtype}" if layer.shape else ""
            table.append((layer.module, layer.layer, sample, str(layer.largest_batch) if sample else "", str(layer)))
        widths = [max(len(row[i]) for row in table) for i in range(4)]
        lines += ["  ".join([*(cell.ljust(n) for cell, n in zip(row, widths, strict=False)), row[4]]) for row in table]
        return "\n".join(lines)


def measure_invariance(subject: Subject) -> Invariance:
    """Run each norm of a model, in evaluation, on the input that the example gives it; the model is restored.

    The modes of the modules decide which norms use the statistics of the batch.
    """
    reason = subject.failure or (f"{subject.lazy} is lazy: run one batch first" if subject.lazy else "")
    if subject.on_meta:
        reason = f"{subject.on_meta} is on the meta device and has no values"
    elif subject.example is None:
        reason = reason or "no example is given"
    threads = torch.get_num_threads()
    if reason:
        return Invariance("", threads, MEMORY, (), reason)
    by_definition = {norm.name: _definition(norm) for norm in subject.norms}
    compiled: dict[Any, list[Trial]] = {}
    with preserving(subject.model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject.model.eval()
        calls = _recorded(subject)
        layers = [_layer(norm, by_definition[norm.name], calls.get(norm.module), compiled) for norm in subject.norms]
    devices = sorted({str(call.input.device) for call in calls.values()})
    return Invariance(", ".join(devices), threads, MEMORY, tuple(layers))


def _definition(norm: Seen) -> str:
    if not norm.is_batch or is_frozen(norm.module):
        return ""
    if norm.module.training and not _is_past_warm_up(norm.module):
        return "in training it uses the statistics of the batch"
    return "" if norm.evaluates_alone else "it keeps no running statistics, so it uses those of the batch"


def _is_past_warm_up(module: nn.Module) -> bool:
    """Whether it is a power norm that uses its running statistic in training, that of the batches before."""
    return isinstance(module, PowerNorm) and int(module.num_batches_tracked) >= module.warmup_iters


def _recorded(subject: Subject) -> dict[nn.Module, SampleCall]:
    """The first call of each norm that the example reaches."""
    found: dict[nn.Module, SampleCall] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = SampleCall.of(module, args, kwargs) if module not in found else None
        if sample is not None:
            found[module] = sample

    with contextlib.ExitStack() as hooks:
        for norm in subject.norms:
            hooks.callback(norm.module.register_forward_pre_hook(before, with_kwargs=True).remove)
        with torch.no_grad():
            call(subject.model, subject.example, SEPARATE)
    return found


def _layer(
    norm: Seen, by_definition: str, sample: SampleCall | None, compiled: dict[Any, list[Trial]]
) -> LayerInvariance:
    layer = type(norm.module).__name__
    if sample is None:
        reason = "" if by_definition else "the example does not reach it"
        return LayerInvariance(norm.name, layer, by_definition=by_definition, reason=reason)
    x = sample.input
    shape, dtype = tuple(x.shape[1:]), str(x.dtype).removeprefix("torch.")
    sizes = [size for size in SIZES if size * x.numel() * x.element_size() <= MEMORY]
    known = LayerInvariance(norm.name, layer, shape, dtype, max(sizes, default=1), by_definition=by_definition)
    if by_definition:
        return known
    try:
        alone = sample.run(norm.module)
    except Exception as error:  # whatever a foreign forward makes of one sample
        return replace(known, reason=f"one sample alone: {_line(error)}")
    trials = [*_in_batches(norm.module, sample, alone, sizes), *_in_pieces(norm, sample, alone)]
    # Compiling takes seconds, and gives equal norms the same code.
    key = identity(norm.module), x.shape, x.stride(), x.dtype
    if key not in compiled:
        compiled[key] = _compiled(norm.module, sample, alone)
    return replace(known, trials=tuple(trials + compiled[key]))


Compared = Iterator[tuple[Tensor, Tensor]]
"""Pairs of tensors that should be equal."""


def _trial(way: str, run: Callable[[], Compared]) -> Trial:
    try:
        same, difference = True, 0.0
        for got, want in run():
            equal, apart = _compare(got, want)
            same, difference = same and equal, max(difference, apart)
    except Exception as error:  # whatever a foreign forward makes of another shape
        return Trial(way, None, reason=_line(error))
    return Trial(way, same, difference)


def _compare(got: Tensor, want: Tensor) -> tuple[bool, float]:
    """Whether two tensors have the same bits, and by how much they differ."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return False, math.inf
    bits = BITS.get(got.element_size())
    if bits is None or torch.equal(got.contiguous().view(bits), want.contiguous().view(bits)):
        return bits is not None or torch.equal(got, want), 0.0
    apart = (got.double() - want.double()).abs().nan_to_num(nan=math.inf)
    equal = (got == want) | (got.isnan() & want.isnan())
    return False, float(torch.where(equal, 0.0, apart).max())


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}".rstrip(": ")


def _places(size: int) -> list[int]:
    return sorted({0, size // 2, size - 1})


def _in_batches(
    module: nn.Module, sample: SampleCall, alone: Sequence[Tensor], sizes: Sequence[int]
) -> Iterator[Trial]:
    def run(size: int) -> Compared:
        places = _places(size)
        for out, want in zip(sample.in_batch(size, places).run(module), alone, strict=True):
            if out.dim() and len(out) == size and len(want) == 1:
                yield from ((out[i : i + 1], want) for i in places)

    for size in sizes:
        yield _trial(f"{BATCH} {size}", partial(run, size))


def _in_pieces(norm: Seen, sample: SampleCall, alone: Sequence[Tensor]) -> Iterator[Trial]:
    """Cut along its longest dimension of positions, and with more of them."""
    dims = positions(norm, sample.input)
    x = sample.input
    if dims is None:
        return
    free, shared = dims
    if free:
        dim = max(free, key=lambda dim: x.shape[dim])
        size = x.shape[dim]

        def cut(length: int) -> Compared:
            for start in sorted({0, (size - length) // 2, size - length}):
                for out, want in zip(sample.part(dim, start, length).run(norm.module), alone, strict=True):
                    yield out, want.narrow(dim, start, length)

        def padded(count: int) -> Compared:
            for out, want in zip(sample.padded(dim, count, 0.0).run(norm.module), alone, strict=True):
                yield out.narrow(dim, 0, size), want

        for length in sorted({1, 7, size // 2} & set(range(1, size))):
            yield _trial(f"in pieces of {length} along dimension {dim}", partial(cut, length))
        for count in PADDING:
            yield _trial(f"padded by {count} along dimension {dim}", partial(padded, count))
    elif shared and takes_extras(norm.module) and not sample.has("mask", "lengths"):
        yield from _masked(norm, sample, alone, shared)


def _masked(norm: Seen, sample: SampleCall, alone: Sequence[Tensor], shared: Sequence[int]) -> Iterator[Trial]:
    """With more positions, which a mask leaves out of the statistics."""
    dim = max(shared, key=lambda dim: sample.input.shape[dim])
    size, channels = sample.input.shape[dim], 1

    def run(count: int) -> Compared:
        longer = sample.padded(dim, count, 7.0)
        valid = torch.ones_like(longer.input.select(channels, 0), dtype=torch.bool)
        valid.narrow(dim - 1, size, count).fill_(False)
        for out, want in zip(longer.run(norm.module, {"mask": valid}), alone, strict=True):
            yield out.narrow(dim, 0, size), want

    for count in PADDING:
        yield _trial(f"padded by {count} along dimension {dim}, with a mask", partial(run, count))


def positions(norm: Seen, x: Tensor) -> tuple[list[int], list[int]] | None:
    """The dimensions of positions, first those that share no statistics, then those that do; None if unknown."""
    if norm.info.kind is None:
        return None
    if norm.is_batch:  # with running statistics; a mixture has moments over positions as well
        row = norm.info.row
        mixes = row is not None and any("[b" not in pattern for pattern in row.patterns)
        return [] if mixes else list(range(2, x.dim())), []
    if norm.info.axis == "last":
        return list(range(1, x.dim() - len(norm.info.shape))), []
    levels = norm.levels(tuple(x.shape))
    if levels is None:
        return None
    reduced = {level.dim for level in levels if level.reduced}
    others = list(range(2, x.dim()))
    return [dim for dim in others if dim not in reduced], [dim for dim in others if dim in reduced]


def _compiled(module: nn.Module, sample: SampleCall, alone: Sequence[Tensor]) -> list[Trial]:
    """Compiled and alone, against the same in eager mode; and compiled for a batch, against compiled alone."""

    # A function, because compiling a module marks it.
    def call_norm(*args: Any, **kwargs: Any) -> Any:
        return module(*args, **kwargs)

    function = torch.compile(call_norm, backend=BACKEND, dynamic=False)
    own: list[Tensor] = []

    def run() -> Compared:
        own.extend(sample.run(function))
        yield from zip(own, alone, strict=True)

    def batch() -> Compared:
        places = _places(COMPILED)
        for out, want in zip(sample.in_batch(COMPILED, places).run(function), own, strict=True):
            yield from ((out[i : i + 1], want) for i in places)

    # Norms share their code, of which Dynamo compiles few forms before it gives up and says nothing.
    with torch._dynamo.config.patch(recompile_limit=MANY, accumulated_recompile_limit=MANY):
        trials = [_trial("compiled", run)]
        if own:
            trials.append(_trial(f"compiled, in a batch of {COMPILED}, against compiled alone", batch))
    return trials
