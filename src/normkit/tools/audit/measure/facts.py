"""Collects in one pass the facts that the rules read; the rules themselves run nothing."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map_only

from normkit.errors import ArgumentError, NormkitError
from normkit.evaluation import arguments, call
from normkit.layers import SyncBatchNorm
from normkit.pattern import Level, bound
from normkit.tools.audit.measure.batches import Batch
from normkit.tools.audit.measure.moments import InputMoments, is_noise, moments, padded_share
from normkit.tools.freeze import is_frozen
from normkit.tools.model.graph.call_graph import CallGraph, Node, call_graph
from normkit.tools.model.info import NormInfo
from normkit.tools.model.tree import norms as every_norm
from normkit.tools.model.valid import FIRST, is_unbatched

BATCHES = 16
"""Number of a loader's batches that are read: enough for a mean and a variance, and seconds at most."""

SEPARATE = (tuple,)
"""The containers of an example whose items are separate arguments; a list is one argument."""


@dataclass
class Seen:
    """A norm and what one run showed of it.

    Attributes:
        name: dotted.
        module, info: the norm and its description.
        shapes: of its input, one for each call of one forward.
        calls: moments of each call of one forward; of batch norm only.
        pooled: moments over all batches, with batch statistics in all batch norms in front of it.
        padded: share of its input that is padding at one end of sequences.
        batches: what each batch of the loader looks like at its input; of batch norm only.
        raised: the variance of its input with dropout at work over that without, in the median channel.
        half_error: error of its output when it computes in float16, as a share of the largest value.
    """

    name: str
    module: nn.Module
    info: NormInfo
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    calls: list[InputMoments] = field(default_factory=list)
    pooled: InputMoments | None = None
    padded: float = 0.0
    batches: list[Batch] = field(default_factory=list)
    raised: float = 1.0
    half_error: float = 0.0

    @property
    def is_batch(self) -> bool:
        """Whether samples share statistics in training."""
        return isinstance(self.module, _BatchNorm) or self.info.over_samples

    @property
    def over_positions(self) -> bool:
        """Whether the positions of a channel share statistics."""
        return self.is_batch or (self.info.row is not None and self.info.row.over_positions)

    @property
    def synced(self) -> bool:
        """Whether statistics are taken over all ranks."""
        return self.info.synced or isinstance(self.module, SyncBatchNorm)

    @property
    def keeps(self) -> bool:
        """Whether there are a running mean and a running variance, of a known size."""
        known, buffers = self.is_batch or self.info.may_keep_statistics, self.module._buffers
        mean, var = buffers.get("running_mean"), buffers.get("running_var")
        return known and isinstance(mean, Tensor) and isinstance(var, Tensor) and not is_lazy(var)

    @property
    def evaluates_alone(self) -> bool:
        """Whether evaluation uses running statistics, whatever they are called, and not those of the batch."""
        return bool(self._running())

    @property
    def tracks(self) -> bool:
        """Whether training updates running statistics of a known size, whatever they are called."""
        return self.keeps or (self.is_batch and bool(self._running()) and not any(map(is_lazy, self._running())))

    def _running(self) -> list[Tensor]:
        buffers = self.module._buffers.items()
        return [value for name, value in buffers if name.startswith("running_") and value is not None]

    def buffer(self, name: str) -> Tensor:
        """A buffer in float64, on the CPU."""
        value = self.module._buffers[name]
        assert value is not None
        return value.detach().cpu().double()

    def regions(self, x: Tensor) -> Tensor | None:
        """The elements of an input of batch, instance or group norm, those that share statistics in one row."""
        if not (self.is_batch or self.info.per_channel or self.info.groups):
            return None
        levels = self.levels(tuple(x.shape))
        if levels is None:
            return None
        kept, reduced = ([i for i, level in enumerate(levels) if level.reduced == inside] for inside in (False, True))
        rows = x.reshape([level.size for level in levels]).permute(*kept, *reduced)
        return rows.reshape(*rows.shape[: len(kept)], -1)

    def region(self, shape: tuple[int, ...]) -> int | None:
        """How many elements of one sample share statistics, for an input of this shape; None if unknown."""
        if self.is_batch:
            return None
        if self.info.kind is not None and self.info.axis == "last":
            return self.info.channels or None
        levels = self.levels(shape)
        return None if levels is None else math.prod(level.size for level in levels if level.reduced)

    def levels(self, shape: tuple[int, ...]) -> tuple[Level, ...] | None:
        """The axes of its region on an input of this shape, channels in dimension 1; None if the region is unknown."""
        region = bound(FIRST, {}) if self.is_batch else self.info.region
        if is_unbatched(self.module, len(shape)):
            shape = (1, *shape)
        try:
            return None if region is None else region.levels(shape)
        except NormkitError:
            return None


@dataclass
class Subject:
    """A model and everything that was found out about it.

    Attributes:
        model: the model.
        norms: every norm once.
        names: of every module.
        graph: what feeds what; None without an example.
        samples: first size of the example's first tensor, its number of samples.
        noise: the example holds random numbers, so that its mean and variance are not those of data.
        on_meta: name of a tensor on the meta device, which has no values; empty if there is none.
        lazy: name of a module that does not know its size yet, so that nothing is run; empty if there is none.
        failure: why the run of the example ended early; empty if it did not.
        example: what the model was run on; the loader's first batch where none was given.
        batches: number of the loader's batches that were read.
        unused: names of the norms whose output reaches no output of the model.
        optimizer, batch_size, world_size, accumulate, per_sample: as given to `audit`.
    """

    model: nn.Module
    norms: list[Seen]
    names: dict[nn.Module, str]
    graph: CallGraph | None = None
    samples: int = 1
    noise: bool = False
    on_meta: str = ""
    lazy: str = ""
    failure: str = ""
    example: Any = None
    batches: int = 0
    unused: frozenset[str] = frozenset()
    optimizer: torch.optim.Optimizer | None = None
    batch_size: int | None = None
    world_size: int = 1
    accumulate: int = 1
    per_sample: bool = False

    def called(self) -> list[tuple[Seen, Node]]:
        """Each call of each norm in the traced run."""
        if self.graph is None:
            return []
        seen = {norm.module: norm for norm in self.norms}
        return [(seen[node.module], node) for node in self.graph.nodes if node.module in seen]

    def frozen(self, norm: Seen) -> bool:
        """Whether it uses its running statistics in training, too.

        It was frozen by `normkit.freeze`, or is in evaluation mode inside a model in training mode. An instance norm
        in evaluation mode counts in any model: those that keep statistics at all are few.
        """
        alone = self.model.training or not norm.is_batch
        return norm.tracks and (is_frozen(norm.module) or (alone and not norm.module.training))


def collect(model: nn.Module, example: Any, loader: Any, noise: bool = False, **given: Any) -> Subject:
    """Trace the example, then measure the inputs of the norms; the caller restores the model.

    Args:
        model: the model.
        example: a tensor, a tuple of arguments or a mapping of keyword arguments; None to look at the modules alone.
        loader: gives batches of inputs, or pairs of inputs and targets; None for the example alone.
        noise: whether the example is known to be random numbers; else its values decide.
        given: the other attributes of `Subject`.

    Returns:
        The facts.

    Raises:
        ArgumentError: the model raises on the example or on a batch.
    """
    found = [Seen(place.name, place.module, info) for place, info in every_norm(model)]
    names = {module: name for name, module in model.named_modules()}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    on_meta = next((name for name, tensor in tensors if tensor.is_meta), "")
    noise = loader is None and (noise or any(is_noise(x) for x in tree_leaves(example) if isinstance(x, Tensor)))
    subject = Subject(model, found, names, noise=noise, on_meta=on_meta, **given)
    batches = [example] if example is not None else []
    if loader is not None:
        try:
            batches = [_input_of(batch) for batch in itertools.islice(loader, BATCHES)]
        except NormkitError:
            raise
        except Exception as error:  # whatever a foreign loader raises
            raise ArgumentError(
                f"loader must give batches, got {type(error).__name__}: {error}: give a DataLoader or a list"
            ) from error
        if not batches:
            raise ArgumentError("loader must give at least one batch, got none: a generator can be read only once")
    if example is None and not batches:
        return subject
    subject.example = batches[0] if example is None else example
    subject.batches = len(batches) if loader is not None else 0
    _trace(subject, tree_map_only(Tensor, lambda x: x.to("meta"), subject.example) if on_meta else subject.example)
    if not subject.failure:
        for batch in batches:
            measure(subject, batch, _pool if loader is None else _pool_and_keep)
    return subject


def _input_of(batch: Any) -> Any:
    """Of a batch (input, target) the input."""
    if isinstance(batch, tuple | list):
        if not batch:
            raise ArgumentError("a batch of the loader must hold an input, got an empty one: give (input, target)")
        return batch[0]
    return batch


def _trace(subject: Subject, example: Any) -> None:
    sizes = [
        leaf.shape[0] for leaf in tree_leaves(arguments(example, SEPARATE)) if isinstance(leaf, Tensor) and leaf.dim()
    ]
    subject.samples = max(1, sizes[0]) if sizes else 1
    by_module = {norm.module: norm for norm in subject.norms}
    last: list[Seen] = []

    def look(module: nn.Module, x: Tensor, masked: bool) -> None:
        norm = by_module[module]
        last[:] = [norm]
        norm.shapes.append(tuple(x.shape))
        if masked:
            return
        if norm.over_positions:
            norm.padded = max(norm.padded, padded_share(x))
            measured = moments(x) if norm.is_batch else None
            if measured is not None:
                norm.calls.append(measured)

    subject.model.eval()
    try:
        subject.graph = call_graph(subject.model, lambda: call(subject.model, example, SEPARATE), by_module, look)
    except Exception as error:
        # A norm that refuses its own input is a finding, and what came before it was seen.
        if last and last[0].region(last[0].shapes[-1]) == 1:
            subject.failure = f"the run of the example ended at {last[0].name}: {error}"
            return
        raise _wrong(error, example) from error


def _pool(norm: Seen, x: Tensor, measured: InputMoments) -> None:
    norm.pooled = measured if norm.pooled is None else norm.pooled.with_(measured)


def _pool_and_keep(norm: Seen, x: Tensor, measured: InputMoments) -> None:
    _pool(norm, x, measured)
    # Differences between several calls of one forward are not differences between batches.
    if len(norm.calls) == 1:
        norm.batches.append(Batch.of(x, measured))


def measure(subject: Subject, batch: Any, note: Callable[[Seen, Tensor, InputMoments], None]) -> None:
    """Note the inputs of the batch norms, which use the statistics of the batch, as in training."""
    by_module = {norm.module: norm for norm in subject.norms if norm.is_batch and norm.calls}
    if not by_module:
        return

    def look(module: nn.Module, x: Tensor) -> None:
        measured, norm = moments(x), by_module[module]
        module.training = measured is not None and measured.count > 1 and norm.tracks and not norm.synced
        if measured is not None:
            note(norm, x, measured)

    try:
        look_at_inputs(subject.model, batch, by_module, look)
    except Exception as error:
        raise _wrong(error, batch) from error


def look_at_inputs(
    model: nn.Module, batch: Any, norms: Collection[nn.Module], look: Callable[[nn.Module, Tensor], None]
) -> None:
    """Run the model once without gradients, and look at the input of each norm before the norm runs."""

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if tensors:
            look(module, tensors[0])

    with contextlib.ExitStack() as hooks:
        for module in norms:
            hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        with torch.no_grad():
            call(model, batch, SEPARATE)


def _wrong(error: Exception, given: Any) -> ArgumentError:
    got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
    return ArgumentError(
        f"the model must accept the example, got {type(error).__name__}: {error}\n    for {got}\n"
        "give what the model is called with: a tensor, a tuple of arguments, or a dict of keyword arguments"
    )
