"""One of the three disjoint parts of the data: for training, validation or test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Subset

from normkit.errors import ArgumentError
from normkit.evaluation import call as call  # one calling convention: a tuple or list, a mapping, or one input
from normkit.study.task.batches import Collate, Columns, Stream, Unpack, collated, count_of, source_of, unpacked
from normkit.study.task.source import digest_of_data, digest_of_fields


@dataclass(frozen=True)
class Part:
    """Inputs and targets that are used for one purpose only.

    Attributes:
        data: a pair (inputs, targets) of tensors or trees of them, `Columns`, or any data set with a length.
        collate: makes a batch of a list of samples; None for torch's default.
        unpack: batch -> (inputs, targets); None for `unpacked`.
        weights: how often each sample is drawn, relative to others; None for all alike.
    """

    data: Any
    collate: Collate | None = None
    unpack: Unpack | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        return count_of(self.data) if isinstance(self.data, tuple) else len(self.data)

    def batch(self, index: Tensor) -> Any:
        """The batch of the samples at these indices, as the data give it."""
        if isinstance(self.data, tuple | Columns):
            columns = self.data.tree if isinstance(self.data, Columns) else self.data
            return pytree.tree_map(lambda t: t[index], columns)
        return (self.collate or collated)([self.data[i] for i in index.tolist()])

    def split(self, batch: Any) -> tuple[Any, Any]:
        """Inputs and targets of a batch."""
        found = (self.unpack or unpacked)(batch)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise ArgumentError(f"unpack must give a pair (inputs, targets) of a batch, got {type(found).__name__}")
        return found[0], found[1]

    def take(self, index: Tensor) -> tuple[Any, Any]:
        """Inputs and targets at these indices, in the shape of `index`."""
        if isinstance(self.data, tuple) and self.unpack is None:
            inputs, targets = pytree.tree_map(lambda t: t[index], self.data)
            return inputs, targets
        if index.dim() == 1:
            return self.split(self.batch(index))
        if self.collate is None:
            flat = self.split(self.batch(index.flatten()))
            inputs, targets = pytree.tree_map(lambda t: t.unflatten(0, index.shape), flat)
            return inputs, targets
        # Each row by itself: padding depends on the samples of a batch.
        rows = [self.split(self.batch(row)) for row in index]
        if len(rows) == 1:
            inputs, targets = pytree.tree_map(lambda t: t.unsqueeze(0) if isinstance(t, Tensor) else t, rows[0])
            return inputs, targets
        inputs, targets = pytree.tree_map(lambda *leaves: torch.stack(leaves), *rows)
        return inputs, targets

    def chunks(self, size: int) -> Iterable[tuple[Any, Any]]:
        """All samples in order, at most `size` at a time."""
        for batch in self.loader(size):
            yield self.split(batch)

    def loader(self, size: int) -> Loader:
        """All samples in order as batches of at most `size`, as the data give them."""
        return Loader(self, size)

    def cut(self, index: Tensor) -> Part:
        """The samples at these indices, as a part."""
        weights = None if self.weights is None else self.weights[index]
        if isinstance(self.data, tuple):
            return replace(self, data=pytree.tree_map(lambda t: t[index], self.data), weights=weights)
        if isinstance(self.data, Columns):
            return replace(self, data=Columns(self.batch(index)), weights=weights)
        return replace(self, data=Subset(self.data, index.tolist()), weights=weights)

    def digest(self) -> str:
        """A digest of the content if it is tensors, or of code, attributes and some samples of a data set."""
        fields = {"collate": self.collate, "unpack": self.unpack, "weights": self.weights}
        if isinstance(self.data, tuple):
            return digest_of_fields({"data": self.data, **fields})
        if isinstance(self.data, Columns):
            return digest_of_fields({"data": self.data.tree, **fields})
        at = torch.linspace(0, len(self) - 1, 16).long()
        return digest_of_data(self.data, len(self), lambda: self.batch(at)) + digest_of_fields(fields)

    @classmethod
    def of(cls, name: str, given: Any, collate: Collate | None = None, unpack: Unpack | None = None) -> Part:
        """Make a part from the argument of a user.

        Args:
            name: name of the argument, for errors.
            given: a `Part`, tensors, a data set or a loader: see `normkit.Task`.
            collate, unpack: as in `normkit.Task`; a loader has its own `collate_fn`.

        Raises:
            ArgumentError: it is none of these, has no samples, or its tensors differ in length.
        """
        if isinstance(given, Part):
            part = given
        else:
            source = source_of(name, given)
            part = cls(source.data, source.collate or collate, unpack, source.weights)
        if not isinstance(part.data, Stream) and len(part) == 0:
            raise ArgumentError(f"{name} must have samples, got none")
        return part

    def first(self, count: int) -> Tensor:
        """The indices of the first samples; of an iterable they are read."""
        return torch.arange(min(count, self.stream.read(count) if self.stream else len(self)))

    def extremes(self) -> Tensor | None:
        """The indices of the samples with the lowest and the highest target, if these are whole numbers in memory.

        >>> Part((torch.zeros(4, 2), torch.tensor([1, 0, 7, 2]))).extremes()
        tensor([1, 2])
        """
        targets = self.data[1] if isinstance(self.data, tuple) else None
        if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
            return None
        flat = targets.reshape(len(targets), -1)
        return torch.stack([flat.amin(1).argmin(), flat.amax(1).argmax()]) if flat.numel() else None

    @property
    def stream(self) -> Stream | None:
        """The iterable that the samples are read from, if it is one."""
        return self.data if isinstance(self.data, Stream) else None


@dataclass(frozen=True)
class Loader:
    """The batches of a part in order; it can be iterated over again."""

    part: Part
    size: int

    def __len__(self) -> int:
        return -(-len(self.part) // self.size)

    def __iter__(self) -> Iterator[Any]:
        for index in torch.arange(len(self.part)).split(self.size):
            yield self.part.batch(index)
