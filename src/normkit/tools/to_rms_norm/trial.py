"""Tries one call of a recorded run on random numbers: whether it sees the mean of the channels, or passes it on.

No list of functions says which of them commute with centring. Each call is repeated in float64, with random numbers in
place of what the model computed, and its outputs are compared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from normkit.tools.model.graph.values import Operation, Value
from normkit.tools.to_rms_norm.channels import Channels, places

SCALES = (1.0, 1e6)
"""Sizes of the random numbers: a bound far from 0, as half precision needs it, shows at the second."""

HALF = (1.0, 1e3)
"""The same for a cast to float16, which has no larger numbers."""

Assignment = dict[Value, Channels]
"""The tensors that have the channels of a stream, and where."""


class EmptyError(Exception):
    """The example gives an empty tensor to a call, so that nothing can be seen."""


class Trial:
    """One call, and what it does to the mean of the channels.

    Args:
        operation: the call.
    """

    def __init__(self, operation: Operation) -> None:
        if any(0 in value.shape for value in (*operation.inputs, *operation.outputs)):
            raise EmptyError
        self.operation = operation
        if isinstance(operation.run, nn.Module):
            self.operation = replace(operation, run=copy.deepcopy(operation.run).double())
        self.fixed = {value: materialised(value) for value in set(operation.inputs) if value.constant}
        self.fixed = {value: t.double() if _is_float(value) else t for value, t in self.fixed.items()}
        first = self.base(1.0)
        result = self.outputs(first)
        half = any(isinstance(y, Tensor) and y.dtype == torch.float16 for y in result.values())
        self.scales = HALF if half else SCALES
        self.bases = [first, self.base(self.scales[1])]
        self.results = [result, self.outputs(self.bases[1])]

    def base(self, scale: float) -> dict[Value, Tensor]:
        """Values for its inputs: those of parameters and integers, random ones for all that the model computed."""
        inputs = dict.fromkeys(self.operation.inputs)
        return {value: self.fixed[value] if value in self.fixed else _drawn(value, scale) for value in inputs}

    @property
    def floats(self) -> list[Value]:
        """Those of its outputs that have a mean."""
        return [value for value in self.operation.outputs if _is_float(value)]

    def outputs(self, given: Mapping[Value, Tensor]) -> dict[Any, Any]:
        """What it returns: tensors by their value, other results by their position."""
        leaves = self.operation.repeated(given.__getitem__)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
        return dict(zip(self.operation.outputs, tensors, strict=True)) | dict(enumerate(others))

    def shifted(self, value: Value, channels: Channels, at: int = 0) -> dict[Any, Any]:
        """Its outputs if one input has another mean; at which of the scales."""
        base = self.bases[at]
        return self.outputs(base | {value: base[value] + channels.drawn(base[value], self.scales[at])})

    def is_blind(self, value: Value, channels: Channels) -> bool:
        """Whether nothing that it returns depends on the mean of this input."""
        for at, old in enumerate(self.results):
            new = self.shifted(value, channels, at)
            if not all(self.agree(key, new, old) for key in old):
                return False
        return True

    def agree(self, key: Any, new: Mapping[Any, Any], old: Mapping[Any, Any], channels: Channels | None = None) -> bool:
        """Whether an output is the same, up to rounding; without its mean, if channels are given."""
        a, b = new[key], old[key]
        if not isinstance(a, Tensor):
            return bool(a == b)
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if not a.is_floating_point():
            return torch.equal(a, b)
        # Rounded once to a lower dtype, once more by the subtraction.
        allowed = 1e-9 if a.dtype == torch.float64 else 8 * torch.finfo(a.dtype).eps
        size = max(_size(a), _size(b))
        a, b = a.double(), b.double()
        finite = a.isfinite()
        if not torch.equal(finite, b.isfinite()) or not torch.equal(a[~finite], b[~finite]):
            return False
        difference = torch.where(finite, a - b, 0.0)
        return _size(difference if channels is None else channels.centred(difference)) <= allowed * size

    def passed(self, output: Value, channels: Channels) -> Assignment | None:
        """The inputs that must be centred, and all outputs that are centred then; None if this output cannot be."""
        # A multiplication by scales is rare, and takes more trials.
        for scaled in (False, True):
            inputs: Assignment = {}
            for value in filter(_is_float, dict.fromkeys(self.operation.inputs)):
                for place in self.possible(value, channels, scaled):
                    new, old = self.shifted(value, place), self.results[0]
                    if not self.agree(output, new, old) and self.agree(output, new, old, channels):
                        inputs[value] = place
                        break
            outputs = self.centred_outputs(inputs, output, channels)
            if outputs is not None:
                return inputs | outputs
        return None

    def possible(self, value: Value, channels: Channels, scaled: bool) -> Iterator[Channels]:
        """Where an input may have the channels; with `scaled`, also before they are multiplied by scales."""
        yield from places(value.shape, channels)
        for factor in self.factors(value, channels) if scaled else ():
            if (before := channels.scaled(factor)) is not None:
                yield from places(value.shape, before)

    def factors(self, value: Value, channels: Channels) -> Iterator[Tensor]:
        """Parameters that may scale the channels, or divide them."""
        for other, tensor in self.fixed.items():
            if other is not value and _is_float(other) and tensor.numel() == channels.count:
                yield from (tensor, 1 / tensor)

    def centred_outputs(self, inputs: Assignment, output: Value, channels: Channels) -> Assignment | None:
        """With random numbers in all inputs that are to be centred: is every output centred, or the same as before?"""
        found: Assignment | None = None
        for scale, base in zip(self.scales, self.bases, strict=True):
            drawn = base | {value: torch.randn_like(base[value]) * scale for value in inputs}
            centred = drawn | {value: place.centred(drawn[value]) for value, place in inputs.items()}
            old, new = self.outputs(drawn), self.outputs(centred)
            outputs: Assignment = {}
            for key in old:
                if key is not output and self.agree(key, new, old):
                    continue
                if not isinstance(key, Value) or not _is_float(key):
                    return None
                likely = [channels] if key is output else [*places(key.shape, channels)]
                place = next((p for p in likely if self.agree(key, new, old | {key: p.centred(old[key])})), None)
                if place is None:
                    return None
                outputs[key] = place
            if found is not None and found != outputs:
                return None
            found = outputs
        return found

    def assignment(self, value: Value, channels: Channels) -> Assignment | None:
        """What must be centred if this input is, nothing if it does not see the mean; None if it does."""
        if self.is_blind(value, channels):
            return {}
        for output in self.floats:
            for place in self.following(value, output, channels):
                found = self.passed(output, place)
                if found is not None and found.get(value) == channels:
                    return found
        return None

    def following(self, value: Value, output: Value, channels: Channels) -> Iterator[Channels]:
        """Where an output may have the channels of an input."""
        yield from places(output.shape, channels)
        for factor in self.factors(value, channels):
            if (after := channels.scaled(1 / factor)) is not None:
                yield from places(output.shape, after)


def materialised(value: Value) -> Tensor:
    """What is computed from parameters and buffers alone, computed again."""
    if value.tensor is not None:
        return value.tensor.detach()
    operation = value.maker
    assert operation is not None
    tensors = [leaf for leaf in operation.repeated(materialised) if isinstance(leaf, Tensor)]
    return tensors[operation.outputs.index(value)]


def _is_float(value: Value) -> bool:
    return value.dtype.is_floating_point


def _drawn(value: Value, scale: float) -> Tensor:
    if value.dtype == torch.bool:
        return torch.rand(value.shape, device=value.device) > 0.5
    if value.tensor is not None and not _is_float(value):
        return value.tensor
    return torch.randn(value.shape, device=value.device, dtype=torch.float64) * scale


def _size(tensor: Tensor) -> float:
    finite = tensor.detach().double()
    finite = finite[finite.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
