"""Norms that keep their running statistics and affine parameters as they are, whatever ``.train()`` is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from normkit.errors import ArgumentError, nearest
from normkit.tools.model.frozen import MARK, check_class, freeze_parts, unfreeze_parts
from normkit.tools.model.names import Where, chosen
from normkit.tools.model.statistics import keeps_statistics, kind_of, norms_of_statistics
from normkit.tools.model.wrapped import refuse_wrapped

PARTS = ("statistics", "affine")
"""What can be frozen of a norm, in the order in which reports name it."""


@dataclass(frozen=True)
class Freezing:
    """The report of `freeze` and `unfreeze`: the norms concerned, by name, and those left out with the reason."""

    norms: dict[str, tuple[str, ...]]
    left: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [(name, " and ".join(parts)) for name, parts in self.norms.items()]
        rows += [(name, f"left: {why}") for name, why in self.left.items()]
        return "\n".join(f"{name or '(the model)':<32} {what}" for name, what in rows) or "no norms"


def freeze(
    model: nn.Module,
    statistics: bool = True,
    affine: bool = True,
    *,
    where: Where = None,
    like: Mapping[str, Any] | None = None,
) -> Freezing:
    """Hold running statistics and parameters of the norms that have such statistics, whatever ``.train()`` is called.

    A frozen norm computes as in evaluation, as batch norm ``y = (x - running_mean) / sqrt(running_var + eps) * weight +
    bias``. So do instance norm, `SwitchableNorm`, `IterNorm`, `PowerNorm` and `EvoNorm2dB0`, each by its formula;
    switchable norm and EvoNorm-B0 still take the moments of each sample, which do not depend on the batch. The norm is
    still an instance of its class, has the same ``state_dict``, and stays frozen through `copy.deepcopy`, `pickle`,
    `torch.save` of the module, `torch.compile`, and the first batch of a lazy norm. Utilities that exchange batch norms
    or compute their statistics again, such as ``convert_sync_batchnorm`` and ``update_bn``, leave it alone. Freezing
    twice changes nothing; parts add up. The other modules train on, dropout among them.

    Args:
        model: changed in place.
        statistics: hold the running statistics, and use them.
        affine: set ``requires_grad`` of the norm's own parameters to False and their gradients to None, so that no
            optimizer of torch moves them. A later ``requires_grad_(True)`` undoes it.
        where: names or patterns of names (``"backbone.*"``), or a function of name and module; None for all.
        like: a ``state_dict`` of a model with frozen norms: freeze the same parts of the same norms. The note is in
            its metadata, which plain models ignore and `torch.save` keeps, but a copy as a plain dict does not.

    Returns:
        A `Freezing`: the norms with what is frozen of each, and those left out.

    Raises:
        ArgumentError: nothing to freeze: no norm with running statistics, a pattern that fits none, neither part asked
            for, or a `like` without metadata or of another model. Nothing is changed then.
        StateError: a norm that was frozen in part and parametrized since; parameters under DistributedDataParallel or
            a sharding wrapper, which keeps account of those that require a gradient: freeze them before.

    Example:
        >>> import torch, normkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout())
        >>> print(normkit.freeze(model))
        1                                statistics and affine
        >>> model = model.train()
        >>> model[1].training, model[1].weight.requires_grad, model[2].training
        (False, False, True)
    """
    norms = norms_of_statistics(model)
    if like is not None:
        if where is not None:
            raise ArgumentError("freeze takes where= or like=, got both: like= names its norms itself")
        wanted, norms = _noted(like, model)
    else:
        parts = _parts(statistics, affine)
        if not parts:
            raise ArgumentError("freeze needs statistics=True or affine=True, got neither: call unfreeze to undo")
        wanted = dict.fromkeys(chosen(model, norms, where), parts)
        if not any(keeps_statistics(norms[name]) for name in wanted):
            raise ArgumentError(
                "freeze needs norms of torch or normkit that update running statistics, "
                f"{type(model).__name__} has none there: "
                "for the parameters of other norms call requires_grad_(False)"
            )
    unfit = {name for name in wanted if not keeps_statistics(norms[name])}
    if like is not None:
        unfit = {name for name in unfit if "statistics" in wanted[name]}
    done = {name: parts for name, parts in wanted.items() if name not in unfit}
    _refuse_wrapped("freeze", model, done)
    freeze_parts({norms[name]: parts for name, parts in done.items()})
    return Freezing(done, {name: "it has no running statistics" for name in wanted if name in unfit})


def unfreeze(model: nn.Module, statistics: bool = True, affine: bool = True, *, where: Where = None) -> Freezing:
    """Undo `freeze`: parameters require gradients as before, and the mode is that of the last call of ``.train()``.

    Args:
        model: changed in place.
        statistics, affine: which part to let go.
        where: names or patterns of names, or a function of name and module; None for all that is frozen.

    Returns:
        A `Freezing`: the norms with what was let go, and those of `where` that were not frozen.

    Raises:
        ArgumentError: a pattern that fits no norm.
        StateError: a norm that was parametrized after it was frozen; parameters under such a wrapper.

    Example:
        >>> import torch, normkit
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
        >>> report = normkit.freeze(model), normkit.unfreeze(model)
        >>> model[0].training, model[0].weight.requires_grad
        (True, True)
    """
    done, left = {}, {}
    parts = _parts(statistics, affine)
    known = {name: m for name, m in model.named_modules() if MARK in vars(m) or kind_of(m) is not None}
    for name, norm in chosen(model, known, where).items():
        gone = tuple(part for part in parts if part in vars(norm).get(MARK, {}))
        if gone:
            done[name] = gone
        elif where is not None:
            left[name] = "it is not frozen"
    _refuse_wrapped("unfreeze", model, done)
    for name in done:
        check_class("unfreeze", known[name])
    for name, gone in done.items():
        unfreeze_parts(known[name], gone)
    return Freezing(done, left)


def _refuse_wrapped(function: str, model: nn.Module, parts: Mapping[str, tuple[str, ...]]) -> None:
    """A wrapper for several processes keeps account of the parameters that require a gradient when it is made."""
    if any("affine" in each for each in parts.values()):
        refuse_wrapped(model, function)


def _parts(statistics: bool, affine: bool) -> tuple[str, ...]:
    return tuple(name for name, asked in zip(PARTS, (statistics, affine), strict=True) if asked)


def _noted(state: Mapping[str, Any], model: nn.Module) -> tuple[dict[str, tuple[str, ...]], dict[str, nn.Module]]:
    """Names and frozen parts in the metadata of a state dict, and the modules of these names."""
    metadata = getattr(state, "_metadata", None)
    if metadata is None:
        raise ArgumentError(
            f"like= must be a state_dict with its metadata, got a {type(state).__name__} without: "
            "give what state_dict() or torch.load returned, not a copy of its items"
        )
    noted = {
        name: tuple(part for part in PARTS if part in entry[MARK]) for name, entry in metadata.items() if MARK in entry
    }
    norms = norms_of_statistics(model)
    # Another norm can be noted for its parameters, if it took the place of a frozen one.
    norms |= {name: m for name, m in model.named_modules() if noted.get(name) == ("affine",) and m._parameters}
    for name in noted:
        if name not in norms:
            raise ArgumentError(f"like= freezes {name!r}, which is no norm of this model: {nearest(name, norms)}")
    return noted, norms
