"""Applies a method to a model: replaces its norms, or inserts norms if it has none."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from normkit import catalog
from normkit.errors import ArgumentError, nearest
from normkit.tools.convert import convert
from normkit.tools.insert import insert
from normkit.tools.model.tree import LAYERS, module_places, norms, replace

OF_LAYERS = tuple(method.name for method in catalog.METHODS if method.insertable and not method.of_weights)
OF_WEIGHTS = tuple(method.name for method in catalog.METHODS if method.of_weights)
KNOWN = ("none", "unchanged", *(method.name for method in catalog.METHODS if method.mark))


def method_name(name: str) -> str:
    """The name of a method that can be applied to a model, from a name or alias.

    >>> method_name("BN"), method_name("none")
    ('batch_norm', 'none')
    """
    found = name if name in ("none", "unchanged") else catalog.find(name).name
    if found not in KNOWN:
        raise ArgumentError(f"compare trains {', '.join(KNOWN)}, got {name!r}: {nearest(found, KNOWN)}")
    return found


def applied(model: nn.Module, method: str, example: Any) -> nn.Module:
    """Apply a method to a model; its other weights are not changed.

    Args:
        model: a new model; it is changed in place.
        method: "unchanged", "none" or a name from the catalog.
        example: some inputs, which give the shapes inside the model.

    Raises:
        ArgumentError: the norm cannot be placed in the model; the message gives the reasons.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    >>> applied(model, "group_norm", torch.zeros(2, 1, 8, 8))[0].norm
    GroupNorm(2, 4, eps=1e-05, affine=True, bias=True)
    """
    if method == "unchanged":
        return model
    had_norms = any(True for _ in norms(model))
    if method in OF_LAYERS and had_norms:
        return _replaced(model, method, example)
    if had_norms:
        model = _without_norms(model, example)
    if method == "none":
        return model
    with warnings.catch_warnings():
        # The warning that the model cannot be traced is for interactive use; here the report of `insert` decides.
        warnings.simplefilter("ignore", UserWarning)
        model, report = insert(model, method, example=example, inplace=True)
    if not report.inserted:
        _refuse(method, [f"{skip.name}: {skip.reason}" for skip in report.skipped] or _layers(model))
    return model


def _replaced(model: nn.Module, method: str, example: Any) -> nn.Module:
    model, report = convert(model, to=method, example=example, inplace=True)
    if not report.changes and report.refusals:
        _refuse(method, [str(refusal) for refusal in report.refusals])
    return model


def _without_norms(model: nn.Module, example: Any) -> nn.Module:
    """The model with a scale and shift in place of each norm, so that only the normalization is removed."""
    model, _ = convert(model, to="batch_norm", example=example, inplace=True)
    model, report = convert(model, to="affine", example=example, inplace=True)
    stuck = {place.module: nn.Identity() for place, _ in norms(model)}
    return replace(model, dict(stuck)) if report.refusals or stuck else model


def _layers(model: nn.Module) -> list[str]:
    kinds = {type(place.module).__name__ for place in module_places(model) if isinstance(place.module, LAYERS)}
    return [f"layers that a norm could follow: {', '.join(sorted(kinds)) or 'none'}"]


def _refuse(method: str, reasons: list[str]) -> None:
    shown = "; ".join(reasons[:5])
    raise ArgumentError(
        f"{method} must fit somewhere in the model, but it does not ({shown}): leave this method out, or give "
        "a model with norms, convolutions or linear layers"
    )
