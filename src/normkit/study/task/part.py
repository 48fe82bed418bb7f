"""One of the three disjoint parts of the data: for training, validation or test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from normkit.errors import ArgumentError
from normkit.study.task.source import digest_of_data, digest_of_fields


@dataclass(frozen=True)
class Part:
    """Inputs and targets that are used for one purpose only: tensors, or any data set with a length."""

    data: Any

    def __len__(self) -> int:
        return len(self.data[1]) if isinstance(self.data, tuple) else len(self.data)

    def take(self, index: Tensor) -> tuple[Any, Any]:
        """Inputs and targets at these indices, in the shape of `index`."""
        if isinstance(self.data, tuple):
            inputs, targets = pytree.tree_map(lambda t: t[index], self.data)
            return inputs, targets
        flat = default_collate([self.data[i] for i in index.flatten().tolist()])
        inputs, targets = pytree.tree_map(lambda t: t.unflatten(0, index.shape), flat)
        return inputs, targets

    def chunks(self, size: int) -> Iterable[tuple[Any, Any]]:
        """All samples in order, at most `size` at a time."""
        for index in torch.arange(len(self)).split(size):
            yield self.take(index)

    def cut(self, index: Tensor) -> Part:
        """The samples at these indices, as a part."""
        if isinstance(self.data, tuple):
            return Part(pytree.tree_map(lambda t: t[index], self.data))
        return Part(Subset(self.data, index.tolist()))

    def digest(self) -> str:
        """A digest of the content if it is tensors, or of code, attributes and some samples of a data set."""
        if not isinstance(self.data, tuple):
            at = torch.linspace(0, len(self) - 1, 16).long()
            return digest_of_data(self.data, len(self), lambda: self.take(at))
        return digest_of_fields({"data": self.data})

    @classmethod
    def of(cls, name: str, given: Any) -> Part:
        """Make a part from the argument of a user.

        Args:
            name: name of the argument, for errors.
            given: a `Part`, a data set with a length, or a pair of tensors.

        Raises:
            ArgumentError: it is none of these, has no samples, or its tensors differ in length.
        """
        part = cls._of(name, given)
        if len(part) == 0:
            raise ArgumentError(f"{name} must have samples, got none")
        return part

    @classmethod
    def _of(cls, name: str, given: Any) -> Part:
        if isinstance(given, Part):
            return given
        if isinstance(given, TensorDataset) and len(given.tensors) == 2:
            return cls(tuple(given.tensors))
        if isinstance(given, Dataset):
            if not hasattr(given, "__len__"):
                raise ArgumentError(f"{name} must have a length, got {type(given).__name__}: use a map-style data set")
            return cls(given)
        if isinstance(given, Sequence) and len(given) == 2:
            inputs, targets = given
            sizes = {len(leaf) for leaf in pytree.tree_leaves((inputs, targets)) if isinstance(leaf, Tensor)}
            if len(sizes) != 1:
                raise ArgumentError(
                    f"{name} must be a pair of tensors with one length, got lengths {sorted(sizes)}: inputs and "
                    "targets have the samples in dimension 0"
                )
            return cls((inputs, targets))
        raise ArgumentError(
            f"{name} must be a torch Dataset with a length or a pair of tensors (inputs, targets), got "
            f"{type(given).__name__}: for a DataLoader give its .dataset"
        )
