"""Rules on the constants of a norm and the dtype that it computes in: NK310 to NK313."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from normkit.tools.audit.measure.facts import Subject
from normkit.tools.audit.rules.rule import Hit, Rule

LARGE = 0.05
"""Fifty times TensorFlow's eps of 1e-3, the largest in use; a twentieth of the variance of what a norm is given."""


def large_eps(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        eps, momentum = getattr(norm.module, "eps", None), getattr(norm.module, "momentum", None)
        if not isinstance(eps, int | float) or eps < LARGE:
            continue
        guess = f", the second argument; momentum, the third, is {momentum:g}" if isinstance(momentum, float) else ""
        yield Hit(norm.name, f"eps={eps:g}{guess}", {"eps": eps, "momentum": momentum})


def whole_momentum(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        momentum = getattr(norm.module, "momentum", None)
        keeps = isinstance(norm.module._buffers.get("running_var"), Tensor)
        if (keeps or norm.tracks) and isinstance(momentum, int | float) and momentum >= 1 and not subject.frozen(norm):
            message = f"momentum={momentum:g}: each batch replaces the running statistics"
            yield Hit(norm.name, message, {"momentum": momentum})


def frozen_at_zero(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        weight = norm.module._parameters.get("weight")
        held: Tensor | None = norm.module._buffers.get("weight") if weight is None else weight
        if held is None or nn.parameter.is_lazy(held) or held.requires_grad or not held.numel():
            continue
        if bool((held.detach() + norm.info.offset == 0).all()):
            message = f"the scale of its {held.numel()} channels is 0 and gets no gradient: only the bias comes out"
            yield Hit(norm.name, message, {"channels": held.numel()})


def overflows_half(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        if norm.half_error <= 0.1:
            continue
        own = [*norm.module.parameters()] or [*subject.model.parameters()]
        half = any(p.dtype == torch.float16 for p in own)
        finite = norm.half_error < math.inf
        how = f"an error of {norm.half_error:.0%} of the largest output" if finite else "values that are not finite"
        message = f"{type(norm.module).__name__} {'gives' if half else 'would give'} {how} in float16, on the example"
        yield Hit(norm.name, message, {"error": norm.half_error}, "" if half else "info")


RULES = (
    Rule(
        code="NK310",
        severity="warning",
        title="large eps, as if momentum was meant",
        why=(
            "eps comes before momentum: BatchNorm2d(8, 0.8) adds 0.8 to the variance. Channels of a small variance "
            "stay small, and the scale of the input is no longer divided out."
        ),
        source=(
            "documentation of torch.nn.BatchNorm2d: BatchNorm2d(num_features, eps=1e-05, momentum=0.1); "
            "eriklindernoren/PyTorch-GAN, dcgan.py"
        ),
        fix=(
            "Name it: BatchNorm2d(8, momentum=0.8). A model that was trained with this eps keeps it, or outputs "
            "change: train again."
        ),
        check=large_eps,
    ),
    Rule(
        code="NK311",
        severity="warning",
        title="momentum of one",
        why=(
            "Running statistics are those of the last batch of training alone, so that evaluation depends on which one "
            "came last."
        ),
        source="documentation of torch.nn.BatchNorm2d: running = (1 - momentum) * running + momentum * batch",
        fix="Use momentum=0.1, or momentum=None for a plain average; normkit.recalibrate a trained model.",
        check=whole_momentum,
    ),
    Rule(
        code="NK312",
        severity="warning",
        title="norm frozen with a scale of zero",
        why=(
            "A scale of zero passes no gradient to the layers before it and, frozen, never leaves zero: the branch is "
            "dead for good. A residual branch that starts at zero was frozen before it was trained."
        ),
        source="Goyal et al. 2017, arXiv:1706.02677, section 5.1, for scales that start at zero",
        fix="Load the trained weights before freezing, or train the scale: normkit.unfreeze, requires_grad_(True).",
        check=frozen_at_zero,
        needs=("values",),
    ),
    Rule(
        code="NK313",
        severity="error",
        title="squares overflow float16",
        why=(
            "The square of a value above 255 is infinite in float16: a norm that squares before it goes to float32 "
            "divides by infinity and returns zeros, or NaN."
        ),
        source="IEEE 754 binary16; T5LayerNorm in huggingface/transformers, which computes the variance in float32",
        fix=(
            "Use a norm that computes in float32, as torch's and normkit's do, such as normkit.RMSNorm, or bfloat16. "
            "Outputs change to those of float32."
        ),
        check=overflows_half,
        needs=("example", "values"),
    ),
)
