"""Rules on the layers before and after a norm: NK101 to NK108."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.utils import parametrize

from normkit.tools.audit.measure.facts import Seen, Subject
from normkit.tools.audit.measure.moments import distance
from normkit.tools.audit.rules.axes import over_width
from normkit.tools.audit.rules.rule import Hit, Rule
from normkit.tools.model.graph.call_graph import LINEAR, Node, is_dropout, moves_only

ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Mish,
    nn.Softplus,
    nn.Sigmoid,
    nn.LeakyReLU,
    nn.ELU,
)
FUNCTIONS = {"relu", "relu_", "relu6", "gelu", "silu", "hardswish", "mish", "softplus", "sigmoid", "leaky_relu", "elu"}
FALSE_ALARMS = 0.01
"""Share of the models without any difference between the calls of their norms in which one is called different."""


def _is_activation(node: Node) -> bool:
    return node.name in FUNCTIONS if node.module is None else isinstance(node.module, ACTIVATIONS)


def _is_known(norm: Seen) -> bool:
    """A norm whose output is its own, not that of an activation it brings along."""
    children = (norm.module._modules.get(name) for name in norm.info.extras)
    return _only_normalizes(norm) and all(c is None or isinstance(c, nn.Identity) for c in children)


def _only_normalizes(norm: Seen) -> bool:
    """Not a method that is an activation as well, or that adds its result to the input."""
    row = norm.info.row
    return row is not None and (row.target is not None or isinstance(norm.module, nn.LocalResponseNorm))


def redundant_bias(subject: Subject) -> Iterator[Hit]:
    assert subject.graph is not None
    for norm, node in subject.called():
        before = subject.graph.alone_before(node) if _subtracts_channel_means(norm, node) else None
        if before is None or before.module is None or subject.frozen(norm):
            continue
        bias = before.module._parameters.get("bias")
        if bias is None or len(node.inputs) > 1 or not _used_once(subject, before, node, bias):
            continue
        message = f"in training {bias.numel()} bias values vanish in {norm.name}"
        yield Hit(before.name, message, {"bias": bias.numel(), "norm": norm.name})


def _subtracts_channel_means(norm: Seen, node: Node) -> bool:
    """Whether all elements that share a mean come from one output channel of a layer, and so have the same bias."""
    mixes = norm.info.row is not None and len(norm.info.row.patterns) > 1 and norm.is_batch
    known = node.channels is not None and norm.info.centers and not mixes
    regions = norm.regions(node.channels) if known and node.channels is not None else None
    return regions is not None and bool((regions == regions[..., :1]).all())


def _used_once(subject: Subject, layer: Node, norm: Node, bias: nn.Parameter) -> bool:
    assert subject.graph is not None
    calls = [subject.graph.calls(node.module) for node in (layer, norm) if node.module is not None]
    owners = [module for module in subject.names if any(p is bias for p in module._parameters.values())]
    return [len(each) for each in calls] == [1, 1] and len(owners) == 1


def two_in_a_row(subject: Subject) -> Iterator[Hit]:
    assert subject.graph is not None
    known = {norm.module: norm for norm in subject.norms}
    for norm, node in subject.called():
        before = subject.graph.alone_before(node)
        first = known.get(before.module) if before is not None and before.module is not None else None
        if first is not None and first is not norm and _is_known(first) and _only_normalizes(norm):
            yield Hit(norm.name, f"normalizes only what {first.name} has normalized", {"first": first.name})


def after_activation(subject: Subject) -> Iterator[Hit]:
    assert subject.graph is not None
    for norm, node in subject.called():
        if not norm.over_positions:
            continue
        before = subject.graph.alone_before(node)
        if before is None or not _is_activation(before):
            continue
        # Only after a layer: a norm after a pooled or summed stream is the first of the next block.
        source = subject.graph.alone_before(before)
        if source is not None and isinstance(source.module, LINEAR):
            yield Hit(norm.name, f"normalizes the output of {before.name}", {"activation": before.name})


def dropout_before(subject: Subject) -> Iterator[Hit]:
    assert subject.graph is not None
    for norm, node in subject.called():
        if not norm.tracks:
            continue
        here: Node | None = node
        while here is not None and here.inputs and here.inputs[0] >= 0:
            here = subject.graph.nodes[here.inputs[0]]
            if is_dropout(here):
                rate = float(getattr(here.module, "p", here.dropout))
                yield Hit(norm.name, f"after {here.name} with p={rate:g}", {"dropout": here.name, "p": rate})
                break
            if not (moves_only(here) or _is_activation(here) or isinstance(here.module, LINEAR)):
                break


def weight_norm_under(subject: Subject) -> Iterator[Hit]:
    assert subject.graph is not None
    for norm, node in subject.called():
        before = subject.graph.alone_before(node) if norm.is_batch or norm.info.per_channel else None
        if before is not None and before.module is not None and reparametrized(before.module, "WeightNorm"):
            yield Hit(before.name, f"its weight norm scales what {norm.name} normalizes", {"norm": norm.name})


def _has_hook(module: nn.Module, kind: str) -> bool:
    return any(type(hook).__name__ == kind for hook in module._forward_pre_hooks.values())


def reparametrized(module: nn.Module, kind: str) -> bool:
    """Whether the weight of a module is that of a norm of weights: ``"WeightNorm"`` or ``"SpectralNorm"``."""
    if not parametrize.is_parametrized(module, "weight"):
        return _has_hook(module, kind)
    assert isinstance(module.parametrizations, nn.ModuleDict)
    return any(kind in type(each).__name__ for each in module.parametrizations["weight"].children())


def old_weight_norm(subject: Subject) -> Iterator[Hit]:
    for module, name in subject.names.items():
        if _has_hook(module, "WeightNorm"):
            yield Hit(name, f"{type(module).__name__} keeps weight_g and weight_v", {"class": type(module).__name__})


def shared(subject: Subject) -> Iterator[Hit]:
    several = [norm for norm in subject.norms if len(norm.calls) > 1 and norm.keeps and not subject.frozen(norm)]
    comparisons = sum(len(norm.calls) - 1 for norm in several)
    for norm in several:
        apart = [distance(norm.calls[0], call, subject.samples) for call in norm.calls[1:]]
        # Half a deviation between two domains: one pair of running statistics can fit neither.
        far = [(shift, chance) for shift, chance in apart if shift > 0.5 and chance * comparisons < FALSE_ALARMS]
        shift, chance = max(far or apart)
        message = f"called {len(norm.calls)} times in one forward; means differ by {shift:.2g} std"
        if not far:
            message += ", no more than by chance" if shift > 0.5 else ""
        measured = {"calls": len(norm.calls), "shift": shift, "chance": chance}
        yield Hit(norm.name, message, measured, "warning" if far else "info")


RULES = (
    Rule(
        code="NK101",
        severity="info",
        title="redundant bias before a norm that subtracts the mean",
        why=(
            "In training the norm subtracts each channel's mean and the bias with it: its gradient is zero, and it "
            "costs memory, time and optimizer state for nothing."
        ),
        source="Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.2",
        fix=(
            "Make the layer with bias=False before training. In a trained model it is part of the running mean: first "
            "norm.running_mean -= layer.bias, if there is one, then layer.bias = None; evaluation gives what it gave."
        ),
        check=redundant_bias,
        needs=("example",),
    ),
    Rule(
        code="NK102",
        severity="warning",
        title="two norms in a row",
        why=(
            "The second norm normalizes the output of the first: the first one's scale is divided out again, and its "
            "time is lost."
        ),
        source="Xiong et al. 2020, arXiv:2002.04745, for where the norms of a block belong",
        fix="Keep one of them. Without the first, outputs change unless its weight and bias are as made; train again.",
        check=two_in_a_row,
        needs=("example",),
    ),
    Rule(
        code="NK103",
        severity="info",
        title="norm after the activation",
        why=(
            "The published order is layer, norm, activation. After the activation the values are one-sided, and the "
            "output of the norm is not cut at zero. Some nets do it on purpose."
        ),
        source="Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.2",
        fix=(
            "Before training put the norm between the layer and the activation, or compare both orders. In a trained "
            "model the outputs change: train again."
        ),
        check=after_activation,
        needs=("example",),
    ),
    Rule(
        code="NK104",
        severity="warning",
        title="dropout before batch norm",
        why=(
            "Dropout raises the variance in training and not in evaluation, so that the running variance is too large "
            "for the inputs of evaluation."
        ),
        source="Li et al. 2019, Understanding the Disharmony between Dropout and Batch Normalization, arXiv:1801.05134",
        fix=(
            "Move dropout after the last batch norm and train on or recalibrate: the running variance is still that of "
            "training with dropout. Or use a norm without running statistics."
        ),
        check=dropout_before,
        needs=("example",),
    ),
    Rule(
        code="NK105",
        severity="warning",
        title="weight norm under another norm",
        why=(
            "The outer norm divides by the scale of each output channel, so that the g of weight norm changes nothing "
            "and gets no gradient."
        ),
        source="Salimans & Kingma 2016, arXiv:1602.07868, offer weight norm in the place of batch norm",
        fix=(
            "Remove weight norm: the weight stays as it is. For normkit's, normkit.remove_weight_norm(layer); for "
            "torch's, torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')."
        ),
        check=weight_norm_under,
        needs=("example",),
    ),
    Rule(
        code="NK106",
        severity="warning",
        title="deprecated torch.nn.utils.weight_norm",
        why=(
            "It keeps the weight as a plain attribute that a hook rewrites: deepcopy fails after a forward, and the "
            "function is marked as deprecated."
        ),
        source="documentation of torch.nn.utils.weight_norm; pytorch/pytorch#102981",
        fix=(
            "torch.nn.utils.remove_weight_norm(layer), then normkit.weight_norm(layer) or "
            "torch.nn.utils.parametrizations.weight_norm(layer): the same weight. Both read the old state dict."
        ),
        check=old_weight_norm,
    ),
    Rule(
        code="NK107",
        severity="warning",
        title="one batch norm for several inputs of a forward",
        why=(
            "Each call normalizes by its own batch in training, while evaluation uses one mixture of all of them. If "
            "the inputs differ in distribution, training and evaluation compute different functions."
        ),
        source=(
            "Xie et al. 2020, Adversarial Examples Improve Image Recognition, arXiv:1911.09665; Chang et al. 2019, "
            "arXiv:1906.03950"
        ),
        fix=(
            "Give each call a batch norm of its own, at first a copy.deepcopy of this one, and train on. Or join the "
            "inputs to one batch, or use group norm; then outputs change."
        ),
        check=shared,
        needs=("example", "values"),
    ),
    Rule(
        code="NK108",
        severity="warning",
        title="layer norm over the width instead of the channels",
        why=(
            "The input is channels first, so that the last dimension is a row of pixels: each row is normalized alone, "
            "and the weights belong to columns."
        ),
        source="huggingface/pytorch-image-models#1340; Liu et al. 2022, arXiv:2201.03545, for the norm meant",
        fix="Use normkit.LayerNorm2d(channels). Outputs change: train again.",
        check=over_width,
        needs=("example",),
    ),
)
