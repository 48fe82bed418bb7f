"""Rules on how the model is trained: NK401 to NK405."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd

from normkit.tools.audit.measure.facts import Seen, Subject
from normkit.tools.audit.rules.rule import Hit, Rule


def decayed(subject: Subject) -> Iterator[Hit]:
    assert subject.optimizer is not None
    decay = {id(p): float(g.get("weight_decay", 0)) for g in subject.optimizer.param_groups for p in g["params"]}
    for norm in subject.norms:
        # An optimizer passes over what has no gradient.
        trained = {key: p for key, p in norm.module._parameters.items() if p is not None and p.requires_grad}
        found = {key: decay.get(id(p), 0.0) for key, p in trained.items()}
        found = {key: value for key, value in found.items() if value > 0}
        if found:
            yield Hit(norm.name, f"weight_decay={max(found.values()):g} on {' and '.join(found)}", {"decay": found})


def unfrozen(subject: Subject) -> Iterator[Hit]:
    if not any(p.requires_grad for p in subject.model.parameters()):
        return
    for norm in subject.norms:
        if norm.tracks and norm.module.training and _is_frozen_place(subject, norm):
            momentum = getattr(norm.module, "momentum", None)
            message = "in train mode among frozen parameters: its running statistics are still updated"
            yield Hit(norm.name, message, {"momentum": momentum})


def _is_frozen_place(subject: Subject, norm: Seen) -> bool:
    own = [*norm.module.parameters()]
    if own:
        return not any(p.requires_grad for p in own)
    # A norm without parameters is judged by the layer before it.
    calls = subject.graph.calls(norm.module) if subject.graph is not None else []
    before = subject.graph.alone_before(calls[0]) if subject.graph is not None and calls else None
    if before is None or not isinstance(before.module, _ConvNd | nn.Linear):
        return False
    return not any(p.requires_grad for p in before.module.parameters())


def not_synced(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        if not norm.is_batch or norm.synced or subject.frozen(norm):
            continue
        per_rank = (
            None if subject.batch_size is None else subject.batch_size // (subject.world_size * subject.accumulate)
        )
        samples = "" if per_rank is None else f" of {per_rank} samples"
        message = f"each of {subject.world_size} ranks normalizes by its own batch{samples}"
        # 16 images per rank is where Wu & He's figure 1 begins to bend.
        small = per_rank is not None and per_rank < 16
        yield Hit(norm.name, message, {"per_rank": per_rank}, "warning" if small else "info")


def mixes_samples(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        if norm.is_batch and not subject.frozen(norm):
            yield Hit(norm.name, f"{type(norm.module).__name__} takes statistics over the batch")


def padding(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        if norm.padded >= 0.05:
            yield Hit(norm.name, f"{norm.padded:.0%} of the positions are padding", {"share": norm.padded})


RULES = (
    Rule(
        code="NK401",
        severity="warning",
        title="norm parameters under weight decay",
        why="Decay pulls the scale of the norm towards zero although it does not overfit, and with it every feature.",
        source="He et al. 2019, Bag of Tricks, arXiv:1812.01187, section 3.1",
        fix=(
            "Make the optimizer with normkit.param_groups(model, weight_decay=...): norms and biases are then not "
            "decayed."
        ),
        check=decayed,
        needs=("optimizer",),
    ),
    Rule(
        code="NK402",
        severity="warning",
        title="batch norm in train mode in a frozen part",
        why=(
            "requires_grad=False stops the optimizer and not the running statistics: the features of the frozen part "
            "change under the part that is trained on them."
        ),
        source="pytorch/pytorch#66073",
        fix="normkit.freeze(part): its norms use the running statistics whatever model.train() says later.",
        check=unfrozen,
    ),
    Rule(
        code="NK403",
        severity="info",
        title="batch norm not synchronized over ranks",
        why="Each rank normalizes by its own part of the batch, and only one rank's running statistics are saved.",
        source="Peng et al. 2018, MegDet, arXiv:1711.07240, on synchronized batch norm",
        fix=(
            "normkit.SyncBatchNorm.convert(model): evaluation gives what it gave. Norms with an activation inside, "
            "such as timm's BatchNormAct2d, need model, _ = normkit.convert(model) before it. Or group norm: outputs "
            "change."
        ),
        check=not_synced,
        needs=("world_size",),
    ),
    Rule(
        code="NK404",
        severity="info",
        title="layer that mixes samples",
        why=(
            "The output for a sample depends on the others, so that per-sample gradients are not defined, and under "
            "vmap in-place updates of the statistics fail."
        ),
        source="pytorch/opacus#319; documentation of torch.func, patching batch norm",
        fix=(
            "normkit.freeze(model), and the running statistics are used in training, too. Or group norm, "
            "normkit.convert(model, 'group_norm'): outputs change, train again."
        ),
        check=mixes_samples,
        needs=("per_sample",),
    ),
    Rule(
        code="NK405",
        severity="warning",
        title="padding enters the statistics",
        why=(
            "Mean and variance are those of data and padding together: the same sequence gives another output in a "
            "batch with longer ones."
        ),
        source="pytorch/pytorch#70529, pytorch/pytorch#81985",
        fix=(
            "Batch sequences of equal length; or give normkit's norms the valid positions, norm(x, mask=mask), or use "
            "layer norm for each position. Outputs change: train again."
        ),
        check=padding,
        needs=("example", "values"),
    ),
)
