"""Spectral normalization: a weight divided by its largest singular value, ``w = v / sigma(v)``.

It is a parametrization of `torch.nn.utils.parametrize`, with the keys of torch's own.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normkit.errors import ArgumentError, ShapeError, StateError, nearest, whole_number
from normkit.functional.call.recompute import is_recomputing
from normkit.functional.call.running import store
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.parametrize.weight import NormOfWeight, adopt, followers_of, make_plain, parametrized, plain_parameter

M = TypeVar("M", bound=nn.Module)


class SpectralNorm(NormOfWeight):
    """Computes a weight with largest singular value 1; made by `spectral_norm`."""

    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor, n_power_iterations: int = 1, eps: float = 1e-12, dim: int = 0) -> None:
        super().__init__()
        self.n_power_iterations = n_power_iterations
        self.eps = eps
        self.dim = dim
        for name, vector in zip(("_u", "_v"), _leading(self._matrix(weight.detach())), strict=True):
            self.register_buffer(name, vector.to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight divided by its largest singular value; in training the vectors are brought up to date first."""
        matrix = self._matrix(weight).to(arithmetic_dtype(weight.dtype))
        # Copies, so that no later call changes what this one has saved for backward.
        u, v = (vector.to(matrix.dtype, copy=True) for vector in (self._u, self._v))
        if self._u.dtype is not matrix.dtype:  # rounded to half precision, they are a little off length 1
            u, v = self._unit(u), self._unit(v)
        if self.training and not is_recomputing():
            with torch.no_grad():
                for _ in range(self.n_power_iterations):
                    v = self._unit(matrix.detach().mT @ u, v)
                    u = self._unit(matrix.detach() @ v, u)
                store(self._u, u.to(self._u.dtype))
                store(self._v, v.to(self._v.dtype))
        # The only singular value of a row or column is exact without the vectors.
        sigma = torch.linalg.vector_norm(matrix) if min(matrix.shape) == 1 else torch.dot(u, matrix @ v)
        sigma = torch.where(sigma.abs() > self.eps, sigma.abs(), 1)
        return (weight.to(sigma.dtype) / sigma).to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A copy of the weight: the trained parameter is the weight before it is divided."""
        return weight.detach().clone()

    def _matrix(self, weight: Tensor) -> Tensor:
        """(outputs, all else); of a vector one column."""
        return weight.movedim(self.dim, 0).reshape(weight.shape[self.dim], -1)

    def _unit(self, vector: Tensor, old: Tensor | None = None) -> Tensor:
        """The vector with length 1; the old one where it has no direction or is not finite."""
        length = torch.linalg.vector_norm(vector)
        unit = vector / length.clamp(min=self.eps)
        return unit if old is None else torch.where((length > self.eps) & length.isfinite(), unit, old)

    def extra_repr(self) -> str:
        return f"n_power_iterations={self.n_power_iterations}, eps={self.eps}, dim={self.dim}"


def spectral_norm(
    module: M, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12, dim: int | None = None
) -> M:
    """Divide a weight by its largest singular value whenever the weight is read.

    ``w = v / sigma``, ``sigma = u @ v_matrix @ v_vector``, with the leading singular vectors of the weight as a matrix
    of `dim` against all else. They are exact at first, so that the first forward is right; each read in training
    follows the weight by `n_power_iterations` steps of the power iteration, without a gradient. In evaluation they
    stay as they are. A vector, or a matrix of one row or column, is divided by its exact length. Make the optimizer
    afterwards, because the parameter is new.

    Args:
        module: the module with the parameter; changed in place.
        name: name of the parameter.
        n_power_iterations: steps of the power iteration at each read in training, at least 1.
        eps: the least length of a vector that has a direction; a weight whose sigma is no larger stays as it is.
        dim: the dimension that counts the outputs; None for 1 in transposed convolutions and 0 elsewhere.

    Returns:
        The module. The keys of its ``state_dict`` are those of `torch.nn.utils.parametrizations.spectral_norm`:
        ``parametrizations.weight.original``, and ``_u`` and ``_v`` in ``parametrizations.weight.0``.

    Raises:
        ArgumentError: no such parameter or dimension, n_power_iterations below 1, a negative eps.
        StateError: the parameter is normalized already, or not initialised yet.

    Example:
        >>> import torch, normkit
        >>> layer = normkit.spectral_norm(torch.nn.Linear(20, 30)).eval()
        >>> bool((torch.linalg.matrix_norm(layer.weight, 2) - 1).abs() < 1e-5)
        True

    Source: Miyato et al. 2018, Spectral Normalization for Generative Adversarial Networks, arXiv:1802.05957.
    """
    parameter = plain_parameter(module, name, "spectral_norm")
    if whole_number("n_power_iterations of spectral_norm", n_power_iterations) < 1:
        raise ArgumentError(f"n_power_iterations of spectral_norm must be at least 1, got {n_power_iterations}: use 1")
    if not eps >= 0:
        raise ArgumentError(f"eps of spectral_norm must not be negative, got {eps}: use 1e-12")
    if dim is None:
        dim = 1 if getattr(module, "transposed", False) else 0
    if parameter.dim() == 0:
        raise ShapeError(f"spectral_norm needs a weight with a dimension, got the number {name!r}: leave it as it is")
    if not -parameter.dim() <= dim < parameter.dim():
        raise ArgumentError(
            f"dim must name a dimension of {name!r}, which has {parameter.dim()}; got {dim}: "
            "use 0, or 1 for a transposed convolution"
        )
    norm = SpectralNorm(parameter, n_power_iterations, eps, dim % parameter.dim()).train(module.training)
    norm.followers = followers_of(module, name)
    parametrize.register_parametrization(module, name, norm)
    adopt(module)
    return module


def remove_spectral_norm(module: M, name: str = "weight") -> M:
    """Make the weight a plain parameter again, with the values that evaluation uses.

    Args:
        module: as given to `spectral_norm`; changed in place.
        name: of the parameter.

    Returns:
        The module.

    Raises:
        StateError: the parameter has no spectral norm.

    Example:
        >>> import torch, normkit
        >>> layer = normkit.remove_spectral_norm(normkit.spectral_norm(torch.nn.Linear(3, 2)))
        >>> type(layer).__name__, list(layer.state_dict())
        ('Linear', ['weight', 'bias'])
    """
    firsts = {key: norms[0] for key, norms in parametrized(module).items()}
    mine = {key: norm for key, norm in firsts.items() if isinstance(norm, SpectralNorm)}
    if name not in mine:
        remedy = nearest(name, list(mine)) if mine else "there is nothing to remove; call spectral_norm first"
        raise StateError(
            "remove_spectral_norm needs a parameter that spectral_norm was called on; "
            f"{name!r} of {parametrize.type_before_parametrizations(module).__name__} is not one: {remedy}"
        )
    norm = mine[name].eval()  # reading the weight to store it follows nothing
    make_plain(module, name, norm.followers)
    return module


def _leading(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The leading left and right singular vectors, exact: of the smaller Gram matrix, in float64 on a CPU."""
    if matrix.is_meta:
        return matrix.new_empty(matrix.shape[0]), matrix.new_empty(matrix.shape[1])
    wide = matrix.to("cpu", torch.float64) if matrix.device.type not in ("cpu", "cuda") else matrix.double()
    if not bool(wide.isfinite().all()):
        raise StateError(
            "spectral_norm needs a finite weight, got one with NaN or infinity: initialise the layer again first"
        )
    scale = wide.abs().max()
    wide = wide / torch.where(scale > 0, scale, 1)
    rows, columns = wide.shape
    small = wide if rows <= columns else wide.mT
    first = torch.linalg.eigh(small @ small.mT).eigenvectors[:, -1]
    other = small.mT @ first
    length = torch.linalg.vector_norm(other)
    # A weight of zeros has no direction: any one, so that the iteration can begin when it is trained.
    other = other / length if length > 0 else torch.full_like(other, other.numel() ** -0.5)
    u, v = (first, other) if rows <= columns else (other, first)
    return u, v
