"""How data become batches, and batches become inputs and targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from normkit.errors import ArgumentError

Collate = Callable[[list[Any]], Any]
Unpack = Callable[[Any], tuple[Any, Any]]

LABELS = ("labels", "label", "targets", "target", "y")
"""The keys of a batch that hold the targets; the first that there is."""
EVALUATED = 10_000
"""The most samples that are read of an iterable for validation, and for the test."""


@dataclass(frozen=True)
class Columns:
    """Samples in memory that are no pair: a tensor, or a tuple or dictionary of tensors, samples in dimension 0."""

    tree: Any

    def __len__(self) -> int:
        return count_of(self.tree)


class Stream(Dataset[Any]):
    """The samples of an iterable, which are read as far as they are needed, and kept.

    >>> stream = Stream(iter("abc"))
    >>> stream[1], len(stream), stream.read(5)
    ('b', 2, 3)
    """

    def __init__(self, iterable: Iterable[Any]) -> None:
        self.iterable = iterable
        self.samples: list[Any] = []
        self._rest: Iterator[Any] | None = None

    def read(self, count: int) -> int:
        """Read on until there are so many samples, or no more; returns how many there are."""
        if self._rest is None and len(self.samples) < count:
            self._rest = iter(self.iterable)
        while self._rest is not None and len(self.samples) < count:
            try:
                self.samples.append(next(self._rest))
            except StopIteration:
                break
        return len(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        self.read(index + 1)
        return self.samples[index]

    def __getstate__(self) -> dict[str, Any]:
        # Other processes need what was read; an iterator cannot be sent to them.
        return {"iterable": (), "samples": self.samples, "_rest": None}


def unpacked(batch: Any, keep_labels: bool = True) -> tuple[Any, Any]:
    """Inputs and targets of a batch.

    A pair is inputs and targets. Of three items or more the last is the targets, and those before are several inputs.
    Of a dictionary the labels are the targets (see `LABELS`). A batch without targets is its own target.

    Args:
        batch: what the data give.
        keep_labels: whether the labels of a dictionary are inputs too, for a model that computes its own loss.

    >>> unpacked((1, 2)), unpacked([1, 2, 3]), unpacked({"x": 1, "label": 2}), unpacked({"x": 1, "label": 2}, False)
    ((1, 2), ((1, 2), 3), ({'x': 1, 'label': 2}, 2), ({'x': 1}, 2))
    """
    if isinstance(batch, Mapping):
        batch = dict(batch)
        key = next((key for key in LABELS if key in batch), None)
        inputs = batch if keep_labels else {name: value for name, value in batch.items() if name != key}
        return inputs, batch if key is None else batch[key]
    if isinstance(batch, tuple | list) and type(batch).__name__ != "PackedSequence":
        if len(batch) == 1:
            return batch[0], batch[0]
        return (batch[0], batch[1]) if len(batch) == 2 else (tuple(batch[:-1]), batch[-1])
    return batch, batch


def collated(samples: list[Any]) -> Any:
    """A batch of samples, as a `DataLoader` makes it by default.

    Raises:
        ArgumentError: the samples cannot be stacked.
    """
    try:
        return default_collate(samples)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(
            f"the samples of a batch must have one shape and hold tensors or numbers, got {_shapes(samples)} "
            f"({error}): give collate_fn=, which makes a batch of a list of samples, as by padding them"
        ) from error


def _shapes(samples: list[Any]) -> str:
    found = {
        str(tuple(leaf.shape)) if hasattr(leaf, "shape") else type(leaf).__name__
        for sample in samples
        for leaf in pytree.tree_leaves(sample)
    }
    return ", ".join(sorted(found)[:6])


def shown(value: Any) -> str:
    """A value in a message: the shape and the kind of a tensor, what a tuple or dictionary holds, else its type.

    >>> shown(torch.zeros(2, 3)), shown((torch.zeros(2), None))
    ('(2, 3) float32', '[(2,) float32, NoneType]')
    """
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {shown(item)}' for name, item in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(shown, value[:6]))}]"
    return type(value).__name__


def count_of(tree: Any) -> int:
    """The number of samples in tensors: the size of the first one."""
    return next(len(leaf) for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))


@dataclass(frozen=True)
class Source:
    """What the data argument of a user is made of.

    Attributes:
        data: a pair of tensors or trees of them, `Columns`, or anything with items and a length, or a `Stream`.
        collate: makes a batch of a list of samples; None for torch's.
        weights: how often each sample is drawn, relative to others; None for all alike.
    """

    data: Any
    collate: Collate | None = None
    weights: Tensor | None = None


def source_of(name: str, given: Any) -> Source:
    """The source in an argument of a user.

    Args:
        name: name of the argument, for errors.
        given: see `normkit.Task`.

    Raises:
        ArgumentError: it is no data, or a loader that does more than load.
    """
    if isinstance(given, DataLoader):
        return _of_loader(name, given)
    if isinstance(given, TensorDataset):
        return Source(given.tensors if len(given.tensors) == 2 else Columns(given.tensors))
    columns = isinstance(given, tuple | Mapping) or _is_array(given) or (isinstance(given, list) and len(given) == 2)
    if columns:
        tree = dict(given) if isinstance(given, Mapping) else given
        tree = _in_memory(name, tuple(tree) if isinstance(tree, list) else tree)
        return Source(tree if isinstance(tree, tuple) and len(tree) == 2 else Columns(tree))
    if isinstance(given, IterableDataset) or (hasattr(given, "__iter__") and not hasattr(given, "__getitem__")):
        return Source(Stream(given))
    if hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, str | bytes):
        return Source(given)
    if isinstance(given, Dataset):
        raise ArgumentError(
            f"{name} must have a length, got {type(given).__name__}: write __len__, or make it an IterableDataset"
        )
    raise ArgumentError(
        f"{name} must be a torch Dataset, a DataLoader or tensors (inputs, targets), got {type(given).__name__}: see "
        "normkit.Task"
    )


def _of_loader(name: str, loader: DataLoader[Any]) -> Source:
    """The data set of a loader and how it collates; batch size and order come from the study."""
    collate = None if loader.collate_fn is default_collate else loader.collate_fn
    if loader.batch_size is None and loader.batch_sampler is None:
        raise ArgumentError(
            f"{name} must be a DataLoader that makes the batches, because the study sets their size, got one with "
            "batch_size=None: give the data set of single samples"
        )
    inner = source_of(name, loader.dataset)
    if isinstance(inner.data, Stream):
        return Source(inner.data, collate)
    sampler: Any = loader.sampler
    if type(loader.batch_sampler) is BatchSampler:
        if type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement):
            return Source(inner.data, collate)
        if type(sampler) is SubsetRandomSampler:
            return Source(Subset(loader.dataset, list(sampler.indices)), collate)
        if type(sampler) is WeightedRandomSampler and sampler.replacement:
            return Source(inner.data, collate, torch.as_tensor(sampler.weights, dtype=torch.double))
        kind = sampler
    else:
        kind = loader.batch_sampler
    raise ArgumentError(
        f"{name} must be a DataLoader whose order the study can repeat for every seed (shuffle=True, a "
        f"SubsetRandomSampler or a WeightedRandomSampler), got one with a {type(kind).__name__}: give its data set"
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or hasattr(value, "__array__")


def _in_memory(name: str, tree: Any) -> Any:
    """Tensors of the arrays, with one length; doubles of numpy become torch's default dtype."""
    tree = _as_tensors(name, tree)
    leaves = pytree.tree_leaves(tree)
    odd = next((leaf for leaf in leaves if not isinstance(leaf, Tensor) or not leaf.dim()), None)
    sizes = {len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()}
    if odd is not None or len(sizes) != 1:
        what = f"lengths {sorted(sizes)}" if odd is None else f"{odd!r:.60}"
        raise ArgumentError(
            f"{name} must be tensors or arrays with one length, got {what}: inputs and targets have the samples in "
            "dimension 0; samples of several lengths are a data set with a collate_fn"
        )
    return tree


def _as_tensors(name: str, tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _as_tensors(name, value) for key, value in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        if tree and all(isinstance(item, bool | int | float) for item in tree):
            return torch.tensor(tree)
        return tuple(_as_tensors(name, item) for item in tree)
    if isinstance(tree, Tensor) or not _is_array(tree):
        return tree
    import numpy as np

    try:
        # A copy, because torch warns of arrays that it may not write to.
        array = torch.from_numpy(np.array(tree))
    except TypeError as error:
        raise ArgumentError(f"{name} must hold numbers, got an array of {np.asarray(tree).dtype}: encode it") from error
    return array.to(torch.get_default_dtype()) if array.dtype is torch.float64 else array
