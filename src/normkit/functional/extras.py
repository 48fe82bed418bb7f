"""What a normalization does in the same pass on request: leave padding out, add, multiply by a gate, activate.

>>> import torch
>>> from normkit import functional
>>> x, valid = torch.tensor([[[1.0, 3.0, 99.0]]]), torch.tensor([[True, True, False]])
>>> functional.instance_norm(x, eps=0.0, mask=valid, activation="relu")
tensor([[[0., 1., 0.]]])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from torch import Tensor

Output = Tensor | tuple[Tensor, Tensor]
"""A tensor, or with ``return_residual=True`` a pair: that tensor, and the sum that was normalized."""


class Fusions(TypedDict, total=False):
    """The keyword arguments of `Extras`, without ``return_residual``, which decides what a function returns."""

    mask: Tensor | None
    lengths: Tensor | Sequence[int] | None
    residual: Tensor | None
    activation: str | None


class Extras(Fusions, total=False):
    """Keyword arguments that every normalization takes.

    Attributes:
        mask: boolean, True at valid positions, of a shape that broadcasts to the input's without its channel
            dimensions. Padded positions do not contribute to the moments; their output and gradient are 0, whatever
            their values.
        lengths: (N,) numbers of valid positions in each sample, in place of `mask`; for one dimension of positions.
        residual: of the input's shape and dtype, added to the input first.
        return_residual: whether to return the sum as well.
        activation: ``relu``, ``leaky_relu``, ``silu``, ``gelu``, ``gelu_tanh``, ``sigmoid``, ``tanh``, or None; applied
            last. Backward computes its input again instead of storing it.
    """

    return_residual: bool


class Epilogues(Fusions, total=False):
    """Keyword arguments of what is multiplied and added around the norm.

    ``y = activation(norm(x + residual) * f(gate) + skip)``, or with `gate_first`
    ``y = activation(norm(x * f(gate)) + skip)``; 0 at padding.

    Attributes:
        gate: of a shape that broadcasts to the input's, such as (N, 1, C) for (N, T, C).
        skip: the same; added last, as in a block that normalizes the output of its branch.
        gate_activation: f, by a name that `activation` may have; None for the gate as it is.
        gate_first: whether the input is multiplied by f(gate), instead of the normalized values.
    """

    gate: Tensor | None
    skip: Tensor | None
    gate_activation: str | None
    gate_first: bool
