"""The base of every layer: it checks the arguments that a layer is made with, and keeps those that torch has not."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from normkit.errors import ArgumentError, nearest_divisor, whole_number
from normkit.functional.call.fusions import check_activation
from normkit.functional.call.precision import Cast, check_cast

Shape = int | Sequence[int]
"""The sizes of the last dimensions; a number for the last alone."""


class Layer(nn.Module):
    """Abstract: a layer with options that torch's layers do not have.

    The defaults are attributes of the class, for a layer of torch's that has been given our class. The keywords of a
    forward are not keyword-only, because the older exporter to ONNX passes their defaults by position.
    """

    options: ClassVar[dict[str, Any]] = {"activation": None}
    activation: str | None = None

    def _accept(self, **options: Any) -> None:
        """Check and keep the options; called before torch's part of the layer is made.

        Raises:
            ArgumentError: an unknown activation.
        """
        check_activation(type(self).__name__, options.get("activation"))
        # Past nn.Module's bookkeeping, which does not exist yet; the initial weight may depend on an option.
        vars(self).update({name: value for name, value in options.items() if value != self.options[name]})
        # Tracers of torch.fx take a layer of torch.nn as one node, and ask the layer itself where it comes from.
        vars(self)["__module__"] = "torch.nn.normkit"

    def extra_repr(self) -> str:
        return self._with_options(super().extra_repr())

    def _with_options(self, description: str) -> str:
        differ = [name for name, default in self.options.items() if getattr(self, name) != default]
        return ", ".join([description, *[f"{name}={getattr(self, name)!r}" for name in differ]])


class LastDims(Layer):
    """Abstract: a norm of the last dimensions, with the conventions in which language models differ."""

    options: ClassVar = {"activation": None, "cast": "after", "zero_centered": False}
    cast: Cast = "after"
    zero_centered: bool = False

    def _accept(self, **options: Any) -> None:
        check_cast(type(self).__name__, options["cast"])
        super()._accept(**options)

    def reset_parameters(self) -> None:
        """Weight as if it were 1, bias 0."""
        super().reset_parameters()  # type: ignore[misc]
        if self.zero_centered and self.weight is not None:
            nn.init.zeros_(self.weight)  # type: ignore[arg-type]


def registered(layer: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer of a layer, or its attribute of that name.

    `nn.Module.__getattr__` takes 0.4 us for a parameter and 0.7 us for a buffer, about as long as a small norm.
    """
    parameters = layer._parameters
    if name in parameters:
        return parameters[name]
    buffers = layer._buffers
    return buffers[name] if name in buffers else getattr(layer, name)


def check_count(layer: nn.Module, name: str, count: Any) -> None:
    """An argument that counts something is a whole number of at least 1."""
    if whole_number(f"{name} of {type(layer).__name__}", count) < 1:
        raise ArgumentError(f"{name} of {type(layer).__name__} must be at least 1, got {count}: give the input's")


def check_eps(layer: nn.Module, eps: float | None) -> None:
    """eps is not negative."""
    if eps is not None and not eps >= 0:
        raise ArgumentError(f"eps of {type(layer).__name__} must not be negative, got {eps}: use 1e-5")


def check_groups(layer: nn.Module, num_groups: int, num_channels: int) -> None:
    """The groups divide the channels."""
    if num_channels % num_groups:
        raise ArgumentError(
            f"num_groups of {type(layer).__name__} must divide num_channels, got {num_groups} groups for "
            f"{num_channels} channels: the nearest that does is {nearest_divisor(num_channels, num_groups)}"
        )


def checked_shape(layer: nn.Module, shape: Any) -> tuple[int, ...]:
    """The sizes of a shape as numbers, whether it is one, a sequence or an array; each at least 1."""
    try:
        sizes: tuple[int, ...] = (operator.index(shape),)
    except TypeError:  # more than one
        sizes = tuple(map(int, shape))
    if any(size < 1 for size in sizes):
        raise ArgumentError(
            f"sizes of {type(layer).__name__} must be at least 1, got {shape}: give the input's last sizes"
        )
    return sizes
