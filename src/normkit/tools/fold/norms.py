"""The norms that `fold` considers, of any library, and the affine map that each applies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from normkit.tools.convert.build import REGIONS, equivalent
from normkit.tools.model.activated import module_of
from normkit.tools.model.info import NormInfo
from normkit.tools.model.refusal import RefusedError
from normkit.tools.model.statistics import scale_and_shift
from normkit.tools.model.tree import Place, hooked, module_places, norms
from normkit.tools.model.valid import is_unbatched

SHAPES = ((2, 2), (2,), ())
"""Positions of the inputs on which a norm is tried: that of an image, of a sequence, of a vector."""


OWN_STATISTICS = frozenset(method for method, region in REGIONS.items() if not region.startswith("[b]"))
"""The methods that normalize by their input, and then apply a weight and a bias."""


def foldable(model: nn.Module) -> dict[nn.Module, tuple[Place, NormInfo]]:
    """Norms with running statistics, weight or bias, and batch norms; without a `kind` if it is not understood."""
    known = {place.module: info for place, info in norms(model)}
    found: dict[nn.Module, tuple[Place, NormInfo]] = {}
    for place in module_places(model):
        module = place.module
        info = known.get(module, NormInfo())
        if not info.kind and not isinstance(module, _NormBase) and has_statistics(module):
            info = _as_batch_norm(module, info)
        elif not isinstance(module, _NormBase) and not info.may_keep_statistics:
            parameters = (module._parameters.get(name) for name in ("weight", "bias"))
            if module not in known or all(parameter is None for parameter in parameters):
                continue
        found[module] = (place, info)
    return found


def keeps_its_statistics(info: NormInfo) -> bool:
    """Whether a norm of its input's own statistics remains when weight and bias are gone."""
    return (info.kind or info.base) in OWN_STATISTICS and not info.running and info.affine


@dataclass(frozen=True)
class AffineMap:
    """A norm as a scale and a shift of its features.

    Attributes:
        norm: the norm.
        scale, shift: of each feature, in float64.
        left: replaces the norm. If the norm is that map as a whole, what it does after it; else what it does before, a
            norm by the statistics of its input.
        taken: the parameters that such a norm is left without; none if the norm is the map as a whole.
        features: the number of the feature of each element of an output, from 1.
    """

    norm: nn.Module
    scale: Tensor
    shift: Tensor
    left: nn.Module
    taken: tuple[str, ...]
    features: Callable[[Tensor], Tensor]

    @staticmethod
    def of(norm: nn.Module, info: NormInfo) -> AffineMap:
        """The map of a norm.

        Raises:
            RefusedError: it applies an activation to the map, or normkit has no such norm without weight and bias.
        """
        numbered = features(norm, info)
        if not keeps_its_statistics(info):
            return AffineMap(norm, *scale_and_shift(norm, info.eps or 0.0), activation_of(norm), (), numbered)
        # Not by `activation_of`: some norms of other libraries keep the name of their gate's activation.
        if info.activation or not all(isinstance(norm._modules[name], nn.Identity) for name in info.extras):
            raise RefusedError(ACTIVATED)
        # Whether the input is cast before the weight is multiplied or after it, is no matter without a weight.
        plain = replace(info, weight=False, bias=False, offset=0.0, rounds_twice=False)
        left = equivalent(norm, plain).train(norm.training)
        own = {name: p for name in ("weight", "bias") if (p := norm._parameters.get(name)) is not None}
        weight, bias = (own[name].detach().double().flatten() if name in own else None for name in ("weight", "bias"))
        like = torch.zeros(info.channels, dtype=torch.float64, device=next(iter(own.values())).device)
        scale = like + 1 if weight is None else weight + info.offset
        return AffineMap(norm, scale, like if bias is None else bias, left, tuple(own), numbered)


ACTIVATED = "its activation is applied before any layer reads it"


def activation_of(norm: nn.Module) -> nn.Module:
    """The module that is left of a norm that is folded as a whole: its dropout and activation, or `Identity`."""
    own = getattr(norm, "activation", None)
    steps = [module_of(own) if isinstance(own, str) else None, *(norm._modules.get(key) for key in ("drop", "act"))]
    kept = [step for step in steps if step is not None and not isinstance(step, nn.Identity)]
    if not kept:
        return nn.Identity()
    # A shallow copy, because it takes over the hooks of the norm; a step that has hooks is wrapped instead.
    return copy.copy(kept[0]) if len(kept) == 1 and not hooked(kept[0]) else nn.Sequential(*kept)


def features(norm: nn.Module, info: NormInfo) -> Callable[[Tensor], Tensor]:
    """For each element of an output, the number of its feature, from 1."""

    def numbered(y: Tensor) -> Tensor:
        numbers = torch.arange(1, info.channels + 1, dtype=torch.int32, device=y.device)
        if info.axis == "last":
            return numbers.view(info.shape).expand(y.shape)
        positions = y.dim() - (1 if is_unbatched(norm, y.dim()) else 2)
        return numbers.view(-1, *(1,) * positions).expand(y.shape)

    return numbered


def has_statistics(module: nn.Module) -> bool:
    """Whether a module keeps a running mean and variance under the names that batch norm has for them."""
    own = {**module._parameters, **module._buffers}
    return isinstance(own.get("running_mean"), Tensor) and isinstance(own.get("running_var"), Tensor)


def _as_batch_norm(module: Any, info: NormInfo) -> NormInfo:
    """A norm of another library, taken for a batch norm; the check of the pair that it is in is its proof."""
    eps = getattr(module, "eps", None)
    if not isinstance(eps, float):
        eps = _eps(module)
    if eps is None:
        name = type(module).__name__
        return replace(info, reason=f"{name} has running statistics, and computes something else than batch norm")
    return replace(info, kind="batch_norm", running=True, eps=eps, shape=tuple(module.running_mean.shape), axis="first")


def _eps(module: nn.Module) -> float | None:
    """The eps of a norm without such an attribute, from its output: at a variance of 0, 1 becomes 1 / sqrt(eps)."""
    for positions in SHAPES:
        try:
            norm: Any = copy.deepcopy(module).double().eval()
            y = _of_ones(norm, positions)
        except Exception:  # whatever a foreign forward makes of it
            continue
        if bool((y == y.flatten()[0]).all()):
            eps = float(y.flatten()[0]) ** -2
            return eps if 0 < eps < 1 else None
    return None


@torch.no_grad()
def _of_ones(norm: Any, positions: tuple[int, ...]) -> Tensor:
    for name, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 0.0}.items():
        if isinstance(getattr(norm, name, None), Tensor):
            getattr(norm, name).fill_(value)
    y: Tensor = norm(torch.ones(2, len(norm.running_var), *positions).to(norm.running_var))
    return y
