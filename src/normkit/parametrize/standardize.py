"""Weight standardization as a parametrization of `torch.nn.utils.parametrize`."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normkit import functional
from normkit.errors import StateError, nearest
from normkit.parametrize.weight import NormOfWeight, adopt, followers_of, make_plain, parametrized, plain_parameter

M = TypeVar("M", bound=nn.Module)


class WeightStandardization(NormOfWeight):
    """Computes a weight with standardized filters; made by `weight_standardization`."""

    def __init__(self, filters: int | None = None, eps: float = 1e-5, dim: int = 0) -> None:
        super().__init__()
        self.eps = eps
        self.dim = dim
        self.gain = None if filters is None else nn.Parameter(torch.ones(filters))

    def forward(self, weight: Tensor) -> Tensor:
        """The standardized weight."""
        return functional.weight_standardization(weight, self.gain, self.eps, self.dim)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A copy of the weight: the trained parameter is the weight before it is standardized."""
        return weight.detach().clone()

    def extra_repr(self) -> str:
        return f"eps={self.eps}, dim={self.dim}, gain={self.gain is not None}"


def weight_standardization(module: M, name: str = "weight", eps: float = 1e-5, dim: int = 0, gain: bool = False) -> M:
    """Give each filter of a weight mean 0 and variance 1 whenever the weight is read.

    ``w = (v - mean) / sqrt(var + eps) * gain``, mean and (biased) variance over every dimension but `dim`. Unlike
    weight norm, this changes the weight at once. Make the optimizer afterwards, because the parameters are new.

    Args:
        module: the module with the parameter; changed in place.
        name: name of the parameter.
        eps: added to the variance, in units of the weight squared.
        dim: the dimension that counts the filters: 0 for convolutions, 1 for transposed convolutions.
        gain: whether each filter has a learned factor, which starts at 1.

    Returns:
        The module; ``state_dict`` holds ``parametrizations.weight.original`` and, with a gain,
        ``parametrizations.weight.0.gain``.

    Raises:
        ArgumentError: no such parameter or dimension, a negative eps.
        ShapeError: filters of a single element.
        StateError: the parameter is normalized already, or not initialised yet.

    Example:
        >>> import torch, normkit
        >>> conv = normkit.weight_standardization(torch.nn.Conv2d(3, 8, 3))
        >>> bool(conv.weight.mean((1, 2, 3)).abs().max() < 1e-6)
        True

    Source: Qiao et al. 2019, Micro-Batch Training with Batch-Channel Normalization and Weight Standardization,
    arXiv:1903.10520.
    """
    parameter = plain_parameter(module, name, "weight_standardization")
    with torch.no_grad():
        functional.weight_standardization(parameter, None, eps, dim)  # raises its errors before anything is changed
    dim %= parameter.dim()
    norm = WeightStandardization(parameter.shape[dim] if gain else None, eps, dim).to(parameter)
    norm.followers = followers_of(module, name)
    parametrize.register_parametrization(module, name, norm)
    adopt(module)
    return module


def remove_weight_standardization(module: M, name: str = "weight") -> M:
    """Make the weight a plain parameter again, with exactly the values that the last forward used.

    Args:
        module: as given to `weight_standardization`; changed in place.
        name: of the parameter.

    Returns:
        The module.

    Raises:
        StateError: the parameter is not standardized.

    Example:
        >>> import torch, normkit
        >>> conv = normkit.weight_standardization(torch.nn.Conv2d(3, 8, 3))
        >>> type(normkit.remove_weight_standardization(conv)).__name__
        'Conv2d'
    """
    firsts = {key: norms[0] for key, norms in parametrized(module).items()}
    mine = {key: norm for key, norm in firsts.items() if isinstance(norm, WeightStandardization)}
    if name not in mine:
        remedy = nearest(name, list(mine)) if mine else "there is nothing to remove; call weight_standardization first"
        raise StateError(
            "remove_weight_standardization needs a parameter that weight_standardization was called on; "
            f"{name!r} of {parametrize.type_before_parametrizations(module).__name__} is not one: {remedy}"
        )
    make_plain(module, name, mine[name].followers)
    return module
