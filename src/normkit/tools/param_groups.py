"""Parameter groups for an optimizer: parameters of norms and biases are not decayed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from numbers import Real
from typing import Any, cast

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm

from normkit.errors import ArgumentError, DtypeError, StateError
from normkit.parametrize.weight import WeightNorm
from normkit.tools.model.names import picked
from normkit.tools.model.tree import module_places, norms
from normkit.tools.model.wrapped import unwrapped

Also = str | Iterable[str] | Callable[[str, nn.Parameter], bool] | None
"""Names or patterns of names (``*.pos_embed``), or a function of name and parameter; None for none."""


def param_groups(
    model: nn.Module, *, weight_decay: float, lr: float | None = None, also: Also = None
) -> list[dict[str, Any]]:
    """Two parameter groups for an optimizer: the first with weight decay, the second without.

    Without decay are weight and bias of every norm, found by what modules are and not by their names; the lengths `g`
    of weight norm; and every bias, which is a parameter that is called ``bias``, ``bias_...`` or ``..._bias``. All else
    is decayed, embeddings and positions too. A shared parameter is in the second group if one of its places is.

    Args:
        model: with or without a wrapper; it is not changed.
        weight_decay: of the first group, at least 0.
        lr: learning rate of both; None leaves it to the optimizer.
        also: what else is not decayed: names or patterns of names, or a function of name and parameter.

    Returns:
        Two dictionaries with ``params`` in the order of the model, ``weight_decay``, and ``lr`` if it is given. Every
        parameter that requires a gradient is in exactly one; those that do not are left out.

    Raises:
        ArgumentError: a weight_decay or lr that is negative or no finite number, a pattern that fits no parameter.
        DtypeError: `model` is not a module.
        StateError: no parameter that requires a gradient, or one that is not initialised.

    Example:
        >>> import torch, normkit
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        >>> optimizer = torch.optim.AdamW(normkit.param_groups(model, weight_decay=0.1), lr=1e-3)
        >>> [(group["weight_decay"], [tuple(p.shape) for p in group["params"]]) for group in optimizer.param_groups]
        [(0.1, [(4, 3)]), (0.0, [(4,), (4,), (4,)])]

    Source: He et al. 2019, Bag of Tricks, arXiv:1812.01187, section 3.1.
    """
    _check_rate("weight_decay", weight_decay)
    if lr is not None:
        _check_rate("lr", lr)
    if not isinstance(model, nn.Module):
        raise DtypeError(f"a model must be a torch.nn.Module, got {type(model).__name__}: pass the module itself")
    model = unwrapped(model)
    names: dict[int, list[str]] = {}
    trained: list[nn.Parameter] = []
    exempt: set[int] = set()
    for name, p in model.named_parameters(remove_duplicate=False):
        if isinstance(p, UninitializedParameter):
            raise StateError(f"param_groups needs parameters with sizes, {name!r} has none yet: call the model once")
        if _is_bias(name):
            exempt.add(id(p))
        if id(p) not in names and p.requires_grad:
            trained.append(p)
        names.setdefault(id(p), []).append(name)
    if not trained:
        what = f"all {len(names)} are frozen" if names else "there are none"
        raise StateError(
            f"param_groups needs parameters that require a gradient, in {type(model).__name__} {what}: unfreeze some"
        )
    exempt |= {id(p) for p in _of_norms(model)}
    exempt |= _exempted(trained, names, also)
    rate = {} if lr is None else {"lr": lr}
    return [
        {"params": [p for p in trained if (id(p) in exempt) == free], "weight_decay": decay, **rate}
        for free, decay in ((False, weight_decay), (True, 0.0))
    ]


def _check_rate(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise ArgumentError(f"{name} must be a finite number of at least 0, got {value!r}: 0 switches it off")


def _of_norms(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of norms of activations, and the lengths in norms of weights."""
    for place, info in norms(model):
        for p in place.module.parameters():
            # A layer that is called a norm and is none may hold a matrix, such as a linear layer with unit rows.
            if info.kind is not None or sum(size > 1 for size in p.shape) <= 1:
                yield p
    yield from (p for _, p in lengths(model))


def lengths(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The lengths `g` of every weight norm of a model, normkit's and torch's, each with the name of its layer."""
    for place in module_places(model):
        own = place.module._parameters
        # Made by torch.nn.utils.weight_norm, before parametrizations.
        old = (p for name, p in own.items() if name.endswith("_g") and f"{name[:-1]}v" in own and p is not None)
        yield from ((place.name, p) for p in old)
        if isinstance(place.module, parametrize.ParametrizationList) and any(
            isinstance(norm, WeightNorm | _WeightNorm) for norm in place.module
        ):
            layer = place.name.rpartition("parametrizations.")[0].rstrip(".")
            yield layer, cast(nn.Parameter, place.module.original0)


def _is_bias(name: str) -> bool:
    own = name.split(".")
    # A parametrized bias is kept as parametrizations.bias.original.
    last = own[own.index("parametrizations") + 1] if "parametrizations" in own else own[-1]
    return last == "bias" or last.startswith("bias_") or last.endswith("_bias")


def _exempted(trained: Iterable[nn.Parameter], names: dict[int, list[str]], also: Also) -> set[int]:
    """The parameters that the caller exempts; a shared one is found under each of its names."""
    if also is None:
        return set()
    if callable(also):
        return {id(p) for p in trained if any(also(name, p) for name in names[id(p)])}
    return picked(also, names, "also= must name parameters of the model")
