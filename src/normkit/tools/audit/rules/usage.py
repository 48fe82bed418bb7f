"""Rules on the optimizer, the loader and evaluation: NK406 to NK409."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from normkit.tools.audit.measure.batches import difference
from normkit.tools.audit.measure.facts import Subject
from normkit.tools.audit.rules.rule import Hit, Rule
from normkit.tools.param_groups import lengths


def _held_by(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """The group of each parameter, by its identity."""
    return {id(p): group for group in optimizer.param_groups for p in group["params"]}


def not_optimized(subject: Subject) -> Iterator[Hit]:
    assert subject.optimizer is not None
    groups = _held_by(subject.optimizer)
    of_norms = {id(p) for norm in subject.norms for p in norm.module.parameters()}
    for norm in subject.norms:
        own = {key: p for key, p in norm.module.named_parameters() if p.requires_grad and id(p) not in groups}
        if own and _is_trained_around(subject.model, norm.name, of_norms, set(groups)):
            message = f"{' and '.join(own)} require a gradient and are in no group of the optimizer"
            yield Hit(norm.name, message, {"parameters": [*own]})


def _is_trained_around(model: nn.Module, name: str, of_norms: set[int], held: set[int]) -> bool:
    """Whether the optimizer has most of the other parameters of the smallest module around a norm that has some."""
    while name:
        name = name.rpartition(".")[0]
        others = {id(p) for p in model.get_submodule(name).parameters()} - of_norms
        if others:
            return 2 * len(others & held) > len(others)
    return False


def decayed_length(subject: Subject) -> Iterator[Hit]:
    assert subject.optimizer is not None
    groups = _held_by(subject.optimizer)
    for layer, g in lengths(subject.model):
        decay = float(groups.get(id(g), {}).get("weight_decay", 0.0))
        if decay > 0 and g.requires_grad:
            yield Hit(layer, f"weight_decay={decay:g} on its {g.numel()} lengths g", {"decay": decay})


def batch_in_evaluation(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        if norm.is_batch and not norm.evaluates_alone:
            message = f"{type(norm.module).__name__} has no running statistics: evaluation takes those of its batch"
            yield Hit(norm.name, message)


def unlike_batches(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        found = difference(norm.batches)
        if found is None or found.share <= 0.5 or not norm.keeps or subject.frozen(norm):
            continue
        batches = len(norm.batches)
        two = f"; numbers {', '.join(map(str, found.groups))} are one group, the rest another" if found.groups else ""
        message = (
            f"{batches} batches differ in {found.share:.0%} of the channels: means by {found.shift:.2g} std of all, "
            f"deviations by a factor of {found.ratio:.2g}{two}"
        )
        measured = {"share": found.share, "shift": found.shift, "ratio": found.ratio, "group": [*found.groups]}
        yield Hit(norm.name, message, measured)


RULES = (
    Rule(
        code="NK406",
        severity="warning",
        title="norm missing from the optimizer",
        why=(
            "Its weight and bias stay as they are while the layers around it are trained: forgotten in a parameter "
            "group, or made after the optimizer, as by a conversion of the model."
        ),
        source="documentation of torch.optim: construct the optimizer after the model is changed",
        fix=(
            "Make the optimizer last, with normkit.param_groups(model, weight_decay=...); or freeze what is meant to "
            "stay."
        ),
        check=not_optimized,
        needs=("optimizer",),
    ),
    Rule(
        code="NK407",
        severity="info",
        title="lengths of weight norm under weight decay",
        why=(
            "w = g v / |v|, so that g is the scale of the layer, and decay pulls it to zero as it would the weight of "
            "a norm; decay on v changes no output, only the size of its steps."
        ),
        source="van Laarhoven 2017, L2 Regularization versus Batch and Weight Normalization, arXiv:1706.05350",
        fix=(
            "Make the optimizer with normkit.param_groups(model, weight_decay=...), which leaves g without decay; or "
            "keep it if the layer's scale is to be regularized."
        ),
        check=decayed_length,
        needs=("optimizer",),
    ),
    Rule(
        code="NK408",
        severity="warning",
        title="batch statistics in evaluation",
        why=(
            "The output for a sample depends on which others are evaluated with it, and a batch of one differs from "
            "training."
        ),
        source="documentation of torch.nn.BatchNorm2d, track_running_stats",
        fix=(
            "Use track_running_stats=True and normkit.recalibrate(model, batches): outputs change, to those for the "
            "statistics of all data. Or a norm that does not mix samples, normkit.convert(model, 'group_norm'), and "
            "train again."
        ),
        check=batch_in_evaluation,
    ),
    Rule(
        code="NK409",
        severity="warning",
        title="batches of the loader from different distributions",
        why=(
            "Training normalizes each batch by its own mean and variance, evaluation by their average, which fits none "
            "of them: batches of one domain or class each, in turn."
        ),
        source=(
            "Chang et al. 2019, Domain-Specific Batch Normalization, arXiv:1906.03950; Wu & Johnson 2021, "
            "arXiv:2105.07576"
        ),
        fix=(
            "Shuffle, or mix the domains within each batch. Or use a batch norm for each domain, or group norm: "
            "outputs change."
        ),
        check=unlike_batches,
        needs=("loader", "values"),
    ),
)
