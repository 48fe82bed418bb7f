"""Rules on running statistics, parameters and constants of a norm: NK301 to NK309."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from normkit.tools.audit.measure.facts import Seen, Subject
from normkit.tools.audit.measure.moments import chance_of_means
from normkit.tools.audit.rules.rule import Hit, Rule
from normkit.tools.freeze import is_frozen

ENOUGH = 32
"""Elements of a channel below which a variance errs by more than a quarter: too few to blame anyone."""

ONE_DRAW = 1e-3
"""Probability of means as different as these norms', if all began with random weights, below which they are trained."""

HUGE = 1e4
"""Within a factor of 7 of the largest float16; what a net that works gives its norms is about 1."""


def _fresh(norm: Seen) -> bool:
    """The values that a new layer has; no batch leaves exactly these."""
    return bool((norm.buffer("running_mean") == 0).all() and (norm.buffer("running_var") == 1).all())


def _trained(norms: list[Seen]) -> set[str]:
    """The norms whose weight and bias training has changed.

    They differ between channels, where nearly every layer begins with a bias that is the same for all. Where a model
    begins with random ones, all norms draw from one distribution, and those of a trained model do not.
    """
    held = [(norm.name, [p for p in norm.module._parameters.values() if p is not None]) for norm in norms]
    varied = {name: own for name, own in held if own and all(bool((p != p.flatten()[0]).any()) for p in own)}
    chances = [chance_of_means(kind) for kind in zip(*varied.values(), strict=False)] if len(varied) > 1 else [0.0]
    return set(varied) if min(chances) * len(chances) < ONE_DRAW else set()


def never_updated(subject: Subject) -> Iterator[Hit]:
    keeping = [norm for norm in subject.norms if norm.keeps]
    fresh = [norm for norm in keeping if _fresh(norm)]
    # One that is frozen may have been trained as it is.
    lost = {norm.name for norm in fresh if not is_frozen(norm.module)} & _trained(keeping)
    as_made = "mean 0 and variance 1 as when made"
    if fresh and len(fresh) == len(keeping):
        # A model that has just been made: one remark, not one for each of its layers.
        message = f"{as_made}, in all {len(fresh)} norms with running statistics: evaluation would not normalize"
        if lost:
            message += f", and weight and bias of {len(lost)} are trained: the buffers were not loaded or not averaged"
        yield Hit("", message, {"layers": len(fresh), "trained": len(lost)}, "error" if lost else "info")
        return
    for norm in fresh:
        message = f"{as_made}, while {len(keeping) - len(fresh)} other batch norms were updated"
        if norm.name in lost:
            message += ", and weight and bias are trained"
        measured = {"others": len(keeping) - len(fresh), "trained": norm.name in lost}
        yield Hit(norm.name, message, measured, "error" if norm.name in lost else "")


def _apart(norm: Seen) -> dict[str, float] | None:
    """How far running statistics are from what enters the norm; None where it cannot be measured."""
    seen = norm.pooled
    if not norm.keeps or seen is None or seen.samples < 4 or seen.independent() < ENOUGH or _fresh(norm):
        return None
    eps = norm.info.eps or 1e-5
    shift = (norm.buffer("running_mean") - seen.mean).abs() / (seen.var + eps).sqrt()
    ratio = (norm.buffer("running_var") + eps) / (seen.var + eps)
    away = (shift > 1) | (ratio > 4) | (ratio < 0.25)
    return {
        "share": float(away.double().mean()),
        "shift": float(shift.median()),
        "ratio": float(ratio.median()),
        "samples": seen.samples,
    }


def far_from_data(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        apart = _apart(norm)
        # A quarter of the channels: chance moves a few of them, in small batches and dead channels.
        if apart is not None and apart["share"] > 0.25:
            message = (
                f"{apart['share']:.0%} of the channels: median shift of the mean {apart['shift']:.2g} std, "
                f"running variance {apart['ratio']:.2g} times that of {apart['samples']:.0f} samples"
            )
            if subject.noise:
                message += "; the example is random numbers, so audit with a loader of real data"
            yield Hit(norm.name, message, dict(apart), "info" if subject.noise else "")


def stale(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        counted, momentum = norm.module._buffers.get("num_batches_tracked"), getattr(norm.module, "momentum", None)
        if not norm.keeps or counted is None or not momentum or not 0 < momentum < 1 or int(counted) == 0:
            continue
        left, apart = (1 - momentum) ** int(counted), _apart(norm)
        # Recalibration counts its few batches and keeps nothing of what was there before.
        fits = apart is not None and apart["share"] <= 0.25 and not subject.noise
        if left > 0.1 and not fits:
            message = f"{left:.0%} of the statistics are still the initial ones, after {int(counted)} batches"
            yield Hit(norm.name, message, {"left": left, "batches": int(counted), "momentum": momentum})


def no_variance(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        if not norm.keeps:
            continue
        var, seen, weight = norm.buffer("running_var"), norm.pooled, norm.module._parameters.get("weight")
        flat = (var >= 0) & (var <= 1e-12)
        # Behind a ReLU a channel is often zero for a few samples.
        if seen is not None and seen.count >= 8 * ENOUGH and seen.samples >= 4:
            flat = flat | seen.constant
        if weight is not None:
            # Multiplied by 0 it passes on no noise.
            flat = flat & (weight.detach().cpu() != 0)
        if bool(flat.any()):
            message = f"{int(flat.sum())} of {flat.numel()} channels do not vary"
            yield Hit(norm.name, message, {"channels": flat.nonzero().flatten().tolist(), "of": flat.numel()})


def exploding(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        # Measured with batch statistics in front: fresh running ones let values grow that training keeps small.
        largest = norm.pooled.largest if norm.pooled is not None else 0.0
        if norm.keeps:
            spread = norm.buffer("running_var").clamp(min=0).sqrt()
            kept = torch.maximum(norm.buffer("running_mean").abs(), spread)
            largest = max(largest, float(kept[kept.isfinite()].amax()) if bool(kept.isfinite().any()) else 0.0)
        if largest > HUGE:
            yield Hit(norm.name, f"values of {largest:.2g} enter it", {"largest": largest})


def not_finite(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        for key, value in [*norm.module._buffers.items(), *norm.module._parameters.items()]:
            if not _is_plain(value) or not value.is_floating_point():  # type: ignore[union-attr]
                continue
            bad = int((~value.isfinite()).sum())  # type: ignore[union-attr]
            if bad:
                yield Hit(norm.name, f"{key} has {bad} values that are not finite", {"tensor": key, "values": bad})
        yield from _negative(norm)


def _negative(norm: Seen) -> Iterator[Hit]:
    # Power norm has a mean of squares in the place of a variance.
    for name in ("running_var", "running_phi"):
        if not _is_plain(norm.module._buffers.get(name)):
            continue
        var = norm.buffer(name)
        least, bad = float(var.nan_to_num(0.0).min()), int((var < 0).sum())
        if not bad:
            continue
        # As some converted checkpoints have it; what is added to it may make it positive.
        breaks = least + (norm.info.eps or 0.0) <= 0
        result = "evaluation gives NaN or infinity" if breaks else "eps makes it positive"
        message = f"{name} has {bad} negative values, the least {least:.2g}: {result}"
        measured = {"tensor": name, "values": bad, "least": least}
        yield Hit(norm.name, message, measured, "" if breaks else "warning")


def _is_plain(value: Tensor | None) -> bool:
    return value is not None and not nn.parameter.is_lazy(value) and not value.is_meta


def eps_lost(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        held = [p for p in norm.module._parameters.values() if _is_plain(p)]
        dtypes = {p.dtype for p in held if p is not None}
        half = dtypes & {torch.float16, torch.bfloat16}
        eps = norm.info.eps
        if not norm.info.shape or not (half or (eps or 1.0) < 1e-30 or eps == 0):
            continue
        dtype = next(iter(half or dtypes), torch.float32)
        if _fails_on_constant(norm, dtype):
            with_eps = "" if eps is None else f" with eps={eps:g}"
            yield Hit(norm.name, f"zeros in {dtype} give NaN{with_eps}", {"eps": eps, "dtype": str(dtype)})


def _fails_on_constant(norm: Seen, dtype: torch.dtype) -> bool:
    """Runs a copy, with statistics of a constant, on zeros."""
    shape = (2, *norm.info.shape) if norm.info.axis == "last" else (2, *norm.info.shape, *(2,) * (norm.info.rank or 2))
    try:
        twin = copy.deepcopy(norm.module).eval()
        for key, value in twin._buffers.items():
            if key in ("running_var", "running_phi") and value is not None:
                value.zero_()
        device = next((p.device for p in twin.parameters()), torch.device("cpu"))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Parameters that are not finite are for NK306.
            for p in twin.parameters():
                p.nan_to_num_()
            y = twin(torch.zeros(shape, dtype=dtype, device=device))
    except (RuntimeError, ValueError, TypeError):
        return False
    return isinstance(y, Tensor) and not bool(y.isfinite().all())


def tensorflow_momentum(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        momentum = getattr(norm.module, "momentum", None)
        if norm.tracks and isinstance(momentum, float) and 0.9 <= momentum < 1:
            steps = 1 / -math.log10(1 - momentum)
            message = f"momentum={momentum:g}: a batch counts for a tenth after {steps:.2g} further batches"
            yield Hit(norm.name, message, {"momentum": momentum})


def no_momentum(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        if norm.tracks and getattr(norm.module, "momentum", None) == 0 and not subject.frozen(norm):
            yield Hit(norm.name, "momentum=0: training leaves the running statistics as they are", {"momentum": 0})


RULES = (
    Rule(
        code="NK301",
        severity="warning",
        title="running statistics never updated",
        why="Evaluation subtracts 0 and divides by 1: the norm does nothing, while training has normalized.",
        source="pytorch/pytorch#5406",
        fix=(
            "Load the buffers with the checkpoint, average them with the parameters, train with the layer in train "
            "mode, or normkit.recalibrate(model, batches) on data of training. Outputs change: evaluation then "
            "normalizes."
        ),
        check=never_updated,
        needs=("values",),
    ),
    Rule(
        code="NK302",
        severity="warning",
        title="running statistics far from the data's",
        why=(
            "Training normalizes by the batch, evaluation by the running statistics; where they disagree, the model "
            "trains well and evaluates badly."
        ),
        source="pytorch/pytorch#5406; Wu & Johnson 2021, Rethinking Batch in BatchNorm, arXiv:2105.07576",
        fix=(
            "Look for another preprocessing, tiny batches or a domain shift; or normkit.recalibrate(model, batches). "
            "Outputs change: evaluation then normalizes as training does."
        ),
        check=far_from_data,
        needs=("example", "values"),
    ),
    Rule(
        code="NK303",
        severity="warning",
        title="running statistics not settled",
        why="After few batches the average is still mixed with the initial mean 0 and variance 1.",
        source="documentation of torch.nn.BatchNorm2d: running = (1 - momentum) * running + momentum * batch",
        fix=(
            "Run more batches in train mode, train with momentum=None for a plain average, or "
            "normkit.recalibrate(model, batches): outputs change. An audit with a loader shows that statistics of few "
            "batches fit."
        ),
        check=stale,
        needs=("values",),
    ),
    Rule(
        code="NK304",
        severity="warning",
        title="channels that do not vary",
        why=(
            "A channel without variance carries no information, and the norm multiplies by 1 / sqrt(eps) whatever "
            "noise comes later: 316 times with the default eps."
        ),
        source="Mehta et al. 2019, On Implicit Filter Level Sparsity, arXiv:1811.12495",
        fix=(
            "Look at the layer before: dead after a high learning rate, or an input channel that never changes. Remove "
            "the channel, or set the norm's weight to 0 there: in these channels outputs change to the bias, as in "
            "training."
        ),
        check=no_variance,
        needs=("values",),
    ),
    Rule(
        code="NK305",
        severity="warning",
        title="exploding input",
        why=(
            "Values near the largest float16 overflow in half precision; in a network that works, norms get values of "
            "about 1."
        ),
        source="Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740",
        fix=(
            "Find the layer in front that lets values grow; check the learning rate, the preprocessing and residual "
            "sums. Outputs change: train again."
        ),
        check=exploding,
        needs=("values",),
    ),
    Rule(
        code="NK306",
        severity="error",
        title="state that is not finite, or a negative variance",
        why=(
            "One batch with NaN or infinity spoils running statistics for good, and every later evaluation with them. "
            "No batch has a negative variance: a file was converted or averaged wrongly, or is damaged."
        ),
        source="pytorch/pytorch#88474",
        fix=(
            "normkit.recalibrate(model, batches) makes the statistics anew; parameters come from an earlier "
            "checkpoint. Outputs change. Skip batches whose loss is not finite; normkit's layers record no statistics "
            "that are not finite."
        ),
        check=not_finite,
        needs=("values",),
    ),
    Rule(
        code="NK307",
        severity="error",
        title="eps lost in the dtype of the arithmetic",
        why=(
            "An eps below the smallest float16, 6e-8, becomes 0 in arithmetic that stays in half precision; a constant "
            "region is then divided by zero."
        ),
        source="huggingface/transformers#33133; IEEE 754 binary16",
        fix="Set eps to 1e-5: outputs stay as they are to rounding, other than those of regions that hardly vary.",
        check=eps_lost,
        needs=("values",),
    ),
    Rule(
        code="NK308",
        severity="warning",
        title="momentum in the convention of TensorFlow",
        why=(
            "In PyTorch momentum is the weight of the new batch, in TensorFlow that of the old average. With 0.99 the "
            "running statistics are those of the last batch."
        ),
        source="documentation of torch.nn.BatchNorm2d and of tf.keras.layers.BatchNormalization",
        fix="Use 1 - momentum: 0.1 for 0.9, 0.01 for 0.99.",
        check=tensorflow_momentum,
    ),
    Rule(
        code="NK309",
        severity="warning",
        title="momentum of zero",
        why="Running statistics are never updated, without any warning; evaluation uses their old values.",
        source="documentation of torch.nn.BatchNorm2d",
        fix="Set momentum=0.1; to hold statistics on purpose call normkit.freeze(layer).",
        check=no_momentum,
    ),
)
