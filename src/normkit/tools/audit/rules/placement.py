"""Rules on where a norm is placed and what reaches it: NK109 to NK112."""

from __future__ import annotations

from collections.abc import Iterator

from normkit.tools.audit.measure.facts import Seen, Subject
from normkit.tools.audit.measure.trials import drops
from normkit.tools.audit.rules.axes import over_time
from normkit.tools.audit.rules.rule import Hit, Rule
from normkit.tools.audit.rules.structure import dropout_before, reparametrized
from normkit.tools.model.graph.call_graph import is_dropout

RAISED = 1.25
"""Variance in training over that in evaluation from which on outputs are an eighth too small."""


def unused(subject: Subject) -> Iterator[Hit]:
    for norm in subject.norms:
        if norm.name in subject.unused:
            yield Hit(norm.name, "what it returns changes no output of the model", {"calls": len(norm.shapes)})


def spectral_norm_under(subject: Subject) -> Iterator[Hit]:
    assert subject.graph is not None
    for norm, node in subject.called():
        before = subject.graph.alone_before(node) if norm.info.kind is not None else None
        if before is not None and before.module is not None and reparametrized(before.module, "SpectralNorm"):
            yield Hit(before.name, f"{norm.name} divides out the scale that it sets", {"norm": norm.name})


def variance_raised(subject: Subject) -> Iterator[Hit]:
    assert subject.graph is not None
    known = {hit.module for hit in dropout_before(subject)}
    for norm, node in subject.called():
        if norm.raised < RAISED or norm.name in known or subject.frozen(norm) or _fits_evaluation(norm):
            continue
        before = [subject.graph.nodes[index] for index in sorted(subject.graph.sources([node.index]))]
        source = next((other for other in reversed(before) if drops(other) > 0), None)
        if source is None:
            continue
        measured = {"ratio": norm.raised, "dropout": source.name, "p": drops(source)}
        message = f"variance {norm.raised:.2g} times as large in training, after {source.name} with p={drops(source):g}"
        # Numbers without meaning vary less in a new model than data do; and published nets drop whole branches.
        grave = is_dropout(source) and bool(norm.buffer("running_mean").any()) and not subject.noise
        yield Hit(norm.name, message, measured, "" if grave else "info")


def _fits_evaluation(norm: Seen) -> bool:
    """Whether the running variance is that of inputs without dropout, as after a recalibration."""
    if norm.pooled is None:
        return False
    varies = norm.pooled.var > 1e-12
    ratio = float((norm.buffer("running_var") / norm.pooled.var)[varies].median()) if bool(varies.any()) else 0.0
    return 0.9 < ratio < 1.1


RULES = (
    Rule(
        code="NK109",
        severity="warning",
        title="norm whose output is unused",
        why=(
            "It costs time and memory, its parameters get no gradient, and in DistributedDataParallel unused "
            "parameters end the run. Mostly it was meant to be used: `self.norm(x)` in place of `x = self.norm(x)`."
        ),
        source="documentation of DistributedDataParallel, find_unused_parameters",
        fix="Use its output, or remove the norm.",
        check=unused,
        needs=("example", "values"),
    ),
    Rule(
        code="NK110",
        severity="warning",
        title="spectral norm under another norm",
        why=(
            "Spectral norm bounds how much the layer can stretch its input; the norm after it divides by the scale of "
            "what comes, whatever it is, and the bound is gone. Some generators (BigGAN) do it on purpose."
        ),
        source="Miyato et al. 2018, arXiv:1802.05957, section 3 on other norms",
        fix=(
            "Remove spectral norm from the layer in evaluation mode, in which its weight stays as it is: "
            "torch.nn.utils.parametrize.remove_parametrizations(layer.eval(), 'weight'). A discriminator that must be "
            "Lipschitz keeps it and loses the other norm: outputs change, train again."
        ),
        check=spectral_norm_under,
        needs=("example",),
    ),
    Rule(
        code="NK111",
        severity="warning",
        title="norm over time in place of the features",
        why=(
            "Each position gets a weight and statistics of its own, or is normalized together with later ones: the "
            "layer depends on the length of the sequence and mixes positions, and the scale of the features stays as "
            "it was."
        ),
        source="documentation of torch.nn.BatchNorm1d, input (N, C, L), and of torch.nn.LayerNorm, the last dimensions",
        fix=(
            "Use a layer norm over the features, before dimensions are exchanged; or a batch norm of the features: y = "
            "norm(x.transpose(1, 2)).transpose(1, 2). Outputs change: train again."
        ),
        check=over_time,
        needs=("example",),
    ),
    Rule(
        code="NK112",
        severity="warning",
        title="dropout raises the variance of what reaches a batch norm",
        why=(
            "Dropout, or stochastic depth, adds variance in training and none in evaluation. Through a sum or a pool "
            "it reaches the running variance, which is then too large for the inputs of evaluation."
        ),
        source="Li et al. 2019, Understanding the Disharmony between Dropout and Batch Normalization, arXiv:1801.05134",
        fix=(
            "Lower the rate, drop after the last batch norm, or use a norm without running statistics. In a trained "
            "model normkit.recalibrate(model, batches), which leaves dropout off: outputs change, to those of the "
            "training."
        ),
        check=variance_raised,
        needs=("example", "values"),
    ),
)
