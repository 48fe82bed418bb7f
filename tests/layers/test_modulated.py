"""Norms with a gate, a condition, a style or a map of labels, against their definitions in float64."""

import copy
import pickle
import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normkit
from normkit import functional
from normkit.errors import ArgumentError, DtypeError, NormkitError, ShapeError

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 8e-3, torch.bfloat16: 6e-2}
"""Of the largest entry. Some ten roundings of numbers of that size in sums of up to a hundred terms, with room for the
convolutions and linear layers of torch, which round to half precision as well: 8 units of it, 80 of float32."""


def gated(state, x, gate, *, groups=1, first=False, function=F.silu, offset=0.0, eps=1e-5):
    x = x * function(gate) if first else x
    rows = x.unflatten(-1, (groups, -1))
    y = (rows / (rows.square().mean(-1, keepdim=True) + eps).sqrt()).flatten(-2) * (state["weight"] + offset)
    return y if first else y * function(gate)


def adaptive(state, x, condition, *, gate=False):
    made = F.linear(F.silu(condition), state["linear.weight"], state["linear.bias"])
    while made.dim() < x.dim():
        made = made.unsqueeze(-2)
    shift, scale, *rest = made.chunk(3 if gate else 2, -1)
    y = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
    return torch.cat([y, rest[0].expand(y.shape)]) if gate else y


def with_gate(layer):
    """Output and gate of an adaptive norm in one tensor, for one comparison."""
    layer.forward = lambda x, condition: _joined(*type(layer).forward(layer, x, condition))
    return layer


def _joined(y, gate):
    return torch.cat([y, gate.expand(y.shape)])


def scaled(x, made, norm=F.batch_norm):
    normal = norm(x) if norm is not F.batch_norm else F.batch_norm(x, None, None, training=True)
    scale, shift = made[:, :, None, None].chunk(2, 1)
    return normal * (1 + scale) + shift


def of_classes(state, x, classes):
    return scaled(x, F.embedding(classes, state["embedding.weight"]))


def of_features(state, x, condition):
    return scaled(x, F.linear(condition, state["linear.weight"], state["linear.bias"]))


def stylized(state, x, style):
    var, mean = torch.var_mean(style, (2, 3), correction=0, keepdim=True)
    return F.instance_norm(x) * (var + 1e-5).sqrt() + mean


def painted(state, x, labels, *, norm):
    hidden = F.interpolate(labels, size=x.shape[2:], mode="nearest")
    hidden = F.relu(F.conv2d(hidden, state["mlp_shared.0.weight"], state["mlp_shared.0.bias"], padding=1))
    gamma, beta = (F.conv2d(hidden, state[f"{key}.weight"], state[f"{key}.bias"], padding=1) for key in MLPS)
    return norm(x) * (1 + gamma) + beta


MLPS = ("mlp_gamma", "mlp_beta")
BATCH = partial(F.batch_norm, running_mean=None, running_var=None, training=True)
ROWS, IMAGES = (3, 5, 12), (4, 6, 5, 3)
Gated = partial(normkit.GatedRMSNorm, 12)

CASES = {
    "gated": (Gated, (ROWS, ROWS), gated),
    "gated, groups": (partial(Gated, group_size=4), (ROWS, ROWS), partial(gated, groups=3)),
    "gated first": (partial(Gated, gate_first=True), (ROWS, ROWS), partial(gated, first=True)),
    "gated first, groups": (
        partial(Gated, group_size=4, gate_first=True, gate_activation="sigmoid", eps=0.1),
        (ROWS, ROWS),
        partial(gated, groups=3, first=True, function=torch.sigmoid, eps=0.1),
    ),
    "gated, around zero": (
        partial(Gated, zero_centered=True, gate_activation=None),
        (ROWS, ROWS),
        partial(gated, function=lambda g: g, offset=1.0),
    ),
    "adaptive": (partial(normkit.AdaptiveLayerNorm, 12, 7), (ROWS, (3, 7)), adaptive),
    "adaptive, each token": (partial(normkit.AdaptiveLayerNorm, 12), (ROWS, ROWS), adaptive),
    "adaptive, frames": (partial(normkit.AdaptiveLayerNorm, 12, 7), ((3, 2, 5, 12), (3, 2, 7)), adaptive),
    "adaptive, gate": (
        lambda **options: with_gate(normkit.AdaptiveLayerNorm(12, 7, gate=True, **options)),
        (ROWS, (3, 7)),
        partial(adaptive, gate=True),
    ),
    "classes": (partial(normkit.ConditionalBatchNorm2d, 6, 9), (IMAGES, None), of_classes),
    "features": (partial(normkit.ConditionalBatchNorm2d, 6, cond_features=7), (IMAGES, (4, 7)), of_features),
    "style": (lambda **_: normkit.AdaIN(6), (IMAGES, (4, 6, 3, 7)), stylized),
    "one style": (lambda **_: normkit.AdaIN(6), (IMAGES, (1, 6, 3, 7)), stylized),
    "map": (partial(normkit.SPADE, 6, 3, 8), (IMAGES, (4, 3, 10, 6)), partial(painted, norm=BATCH)),
    "map, instances": (
        partial(normkit.SPADE, 6, 3, 8, "instance"),
        (IMAGES, (4, 3, 2, 2)),
        partial(painted, norm=F.instance_norm),
    ),
}


def made(name, dtype=torch.float32):
    """A layer with parameters of its own, and its inputs."""
    torch.manual_seed(0)
    make, (first, second), oracle = CASES[name]
    layer = make(dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 2 + (parameter.dim() == 1))
    x = (torch.randn(first) + 0.5).to(dtype)
    other = torch.randint(9, first[:1]) if second is None else torch.randn(second).to(dtype)
    return layer, x, other, oracle


def assert_close(actual, expected, dtype):
    error = (actual.detach().double() - expected.detach()).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert error <= TOLERANCE[dtype], error


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, dtype):
    layer, x, other, oracle = made(name, dtype)
    leaves = [t for t in (x, other) if t.is_floating_point()]
    for leaf in leaves:
        leaf.requires_grad_()
    wide = [t.detach().double().requires_grad_() if t.is_floating_point() else t for t in (x, other)]
    state = {key: p.detach().double().requires_grad_() for key, p in layer.named_parameters()}
    y, expected = layer(x, other), oracle(state, *wide)
    assert y.dtype is dtype
    assert_close(y, expected, dtype)
    dy = torch.randn(y.shape, dtype=torch.float64).to(dtype)
    ours = torch.autograd.grad(y, [*leaves, *layer.parameters()], dy)
    wide_leaves = [t for t in wide if t.is_floating_point()]
    theirs = torch.autograd.grad(expected, [*wide_leaves, *state.values()], dy.double())
    for mine, exact, leaf in zip(ours, theirs, [*leaves, *layer.parameters()], strict=True):
        assert (mine.dtype, mine.shape) == (leaf.dtype, leaf.shape)
        assert_close(mine, exact, dtype)


@pytest.mark.parametrize("name", ["gated, groups", "gated first", "adaptive", "style"])
def test_second_derivatives(name):
    layer, x, other, _ = made(name, torch.float64)
    inputs = [t[:1].requires_grad_() for t in (x, other)]
    assert torch.autograd.gradgradcheck(layer, inputs, fast_mode=True)


def test_half_precision_rounds_in_the_order_of_mamba():
    x, gate = torch.randn(2, 64, 32).bfloat16()
    layer = normkit.GatedRMSNorm(32, group_size=8, gate_first=True, cast="before", dtype=torch.bfloat16)
    nn.init.normal_(layer.weight)
    rows = (x.float() * F.silu(gate.float())).unflatten(-1, (4, 8))
    normal = (rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + 1e-5)).flatten(-2)
    # The mean square's own rounding may turn a tie in one element of many.
    assert (layer(x, gate) != layer.weight * normal.bfloat16()).float().mean() < 0.005
    # The output of a scan is float32 where the gate is not.
    y = layer(x.float(), gate)
    assert y.dtype is torch.float32
    torch.testing.assert_close(y, layer.weight * normal)


def test_half_precision_rounds_in_the_order_of_qwen():
    x, gate, skip = torch.randn(3, 64, 32).bfloat16()
    weight = torch.randn(32).bfloat16()
    normal = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)
    product = (weight * normal.bfloat16()).float()
    expected = {
        "gate": (product * F.silu(gate.float())).bfloat16(),
        "skip": (product + skip).bfloat16(),
        "gate and skip": (product * F.silu(gate.float()) + skip).bfloat16(),
    }
    for name, y in expected.items():
        given = {key: t for key, t in (("gate", gate), ("skip", skip)) if key in name}
        options = {"gate_activation": "silu"} if "gate" in name else {}
        ours = functional.rms_norm(x, (32,), weight, 1e-5, cast="before", **given, **options)
        assert (ours != y).float().mean() < 0.005  # a tie in the mean square, as above
    ours = functional.gated_rms_norm(x, gate, weight, 1e-5, cast="before", skip=skip)
    assert (ours != expected["gate and skip"]).float().mean() < 0.005


def test_without_a_gate_there_is_the_norm_alone():
    x, skip, residual = torch.randn(3, 2, 4, 12)
    layer = normkit.GatedRMSNorm(12, activation="relu")
    expected = F.relu(F.rms_norm(x + residual, (12,), eps=1e-5) + skip)
    y, total = layer(x, residual=residual, return_residual=True, skip=skip)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(total, x + residual)
    layer = normkit.GatedRMSNorm(12, group_size=4)
    lengths = torch.tensor([4, 1])
    padded = layer(x, skip, lengths=lengths)
    torch.testing.assert_close(padded[0], layer(x, skip)[0])
    assert not padded[1, 1:].any()


KEYS = {
    "gated": ["weight"],
    "adaptive": ["linear.weight", "linear.bias"],
    "classes": ["embedding.weight", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"],
    "features": ["linear.weight", "linear.bias"],
    "style": [],
    "map, instances": [f"{key}.{p}" for key in ("mlp_shared.0", *MLPS) for p in ("weight", "bias")],
}


def test_state_and_first_values():
    for name, keys in KEYS.items():
        layer = made(name)[0]
        assert [key for key in layer.state_dict() if keys or "norm" not in key][: len(keys)] == keys
    assert torch.equal(Gated().weight, torch.ones(12))
    assert torch.equal(Gated(zero_centered=True).weight, torch.zeros(12))
    assert not list(Gated(elementwise_affine=False).parameters())
    x, condition = torch.randn(2, 5, 12), torch.randn(2, 12)
    y, gate = normkit.AdaptiveLayerNorm(12, gate=True, zero=True)(x, condition)
    torch.testing.assert_close(y, F.layer_norm(x, (12,), eps=1e-6))
    assert torch.equal(gate, torch.zeros(2, 1, 12))
    images = torch.randn(IMAGES)
    layer = normkit.ConditionalBatchNorm2d(6, 9)
    plain = nn.BatchNorm2d(6, affine=False)
    for training in (True, False):
        y = layer.train(training)(images, torch.arange(4))
        torch.testing.assert_close(y, plain.train(training)(images))
    assert layer.norm.num_batches_tracked == 1
    torch.testing.assert_close(layer.norm.running_var, plain.running_var)


WRONG = {
    "gate": (Gated, (torch.ones(3, 12), torch.ones(3, 6)), ShapeError, "gate of gated_rms_norm must broadcast"),
    "width": (Gated, (torch.ones(3, 6), torch.ones(3, 6)), ShapeError, "must end with normalized_shape (12,)"),
    "whole numbers": (Gated, (torch.ones(3, 12).long(), None), DtypeError, "is defined for float64"),
    "group size": (partial(Gated, group_size=5), None, ArgumentError, "must divide the 12 features, got 5"),
    "no group size": (partial(Gated, group_size=0), None, ArgumentError, "must divide the 12 features, got 0"),
    "function": (partial(Gated, gate_activation="sillu"), None, ArgumentError, "did you mean 'silu'"),
    "eps": (partial(Gated, eps=-1.0), None, ArgumentError, "eps of GatedRMSNorm must not be negative, got -1.0"),
    "both": (
        partial(Gated, gate_first=True),
        (torch.ones(3, 12), torch.ones(3, 12), None, None, torch.ones(3, 12)),
        ArgumentError,
        "add the residual before",
    ),
    "condition": (
        partial(normkit.AdaptiveLayerNorm, 12, 7),
        (torch.ones(3, 5, 12), torch.ones(3, 12)),
        ShapeError,
        "the condition must be (N, 7), or have such a row for each token",
    ),
    "samples": (
        partial(normkit.AdaptiveLayerNorm, 12),
        (torch.ones(3, 5, 12), torch.ones(2, 12)),
        ShapeError,
        "for an input of shape (3, 5, 12), got shape (2, 12)",
    ),
    "tokens": (
        partial(normkit.AdaptiveLayerNorm, 12),
        (torch.ones(3, 12), torch.ones(3, 5, 12)),
        ShapeError,
        "got shape (3, 5, 12)",
    ),
    "neither": (partial(normkit.ConditionalBatchNorm2d, 6), None, ArgumentError, "got None and None"),
    "one-hot": (
        partial(normkit.ConditionalBatchNorm2d, 6, 9),
        (torch.ones(IMAGES), torch.ones(4, 9).long()),
        ShapeError,
        "must have shape (4,), got (4, 9): give the number of the class of each sample, no one-hot vector",
    ),
    "classes": (
        partial(normkit.ConditionalBatchNorm2d, 6, 9),
        (torch.ones(IMAGES), torch.ones(4)),
        DtypeError,
        "classes must be whole numbers, got torch.float32",
    ),
    "rank": (
        partial(normkit.ConditionalBatchNorm2d, 6, 9),
        (torch.ones(4, 6), torch.arange(4)),
        ShapeError,
        "the input must be (N, C, H, W), got shape (4, 6)",
    ),
    "styles": (
        partial(normkit.AdaIN, 6),
        (torch.ones(IMAGES), torch.ones(3, 6, 5, 3)),
        ShapeError,
        "a style for each of the 4 samples, or one for all, got 3",
    ),
    "channels": (
        partial(normkit.AdaIN, 6),
        (torch.ones(IMAGES), torch.ones(4, 5, 5, 3)),
        ShapeError,
        "must be the layer's 6 channels, got 5",
    ),
    "maps": (
        partial(normkit.SPADE, 6, 3),
        (torch.ones(IMAGES), torch.ones(1, 3, 5, 3)),
        ShapeError,
        "a map for each of the 4 samples, got 1",
    ),
    "norm": (partial(normkit.SPADE, 6, 3, norm="instanse"), None, ArgumentError, "did you mean 'instance'"),
    "kernel": (partial(normkit.SPADE, 6, 3, kernel_size=4), None, ArgumentError, "must be odd, got 4"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_and_inputs(name):
    make, inputs, kind, text = WRONG[name]
    with pytest.raises(kind, match=re.escape(text)) as raised:
        make()(*inputs)
    assert isinstance(raised.value, NormkitError)
    if inputs is not None:
        assert f"in {type(make()).__name__}(" in str(raised.value)


@pytest.mark.parametrize("name", [name for name in CASES if name != "adaptive, gate"])
def test_copies_compute_the_same(name):
    layer, x, other, _ = made(name)
    y = layer(x, other)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x, other), y)
        assert repr(twin) == repr(layer)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*")  # torch's compiler warns of torch
@pytest.mark.parametrize("name", ["gated first, groups", "gated", "adaptive", "features", "style", "map"])
def test_compiled_layers_compute_the_same(name):
    layer, x, other, _ = made(name)
    for leaf in (x, other):
        leaf.requires_grad_()
    compiled = torch.compile(layer, fullgraph=True)
    found = []
    for each in (layer, compiled):
        y = each(x, other)
        found.append([y, *torch.autograd.grad(y.sin().sum(), [x, other])])
    for a, b in zip(*found, strict=True):
        assert_close(b, a, torch.float32)  # other kernels, and sums in another order


def test_tools_find_the_norm_inside():
    layer, images, classes, _ = made("classes")
    y = layer(images, classes)
    seen = []
    handle = layer.norm.register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(layer(images, classes), y)
    handle.remove()
    torch.testing.assert_close(seen[0], F.batch_norm(images, None, None, training=True))
    grouped, _ = normkit.convert(layer, to="group_norm", num_groups=2)
    assert isinstance(grouped.norm, normkit.GroupNorm)
    expected = scaled(images, layer.embedding(classes), partial(F.group_norm, num_groups=2))
    torch.testing.assert_close(grouped(images, classes), expected)
    expected = layer.eval()(images, classes)
    normkit.freeze(layer)
    torch.testing.assert_close(layer.train()(images, classes), expected)


def test_the_function_is_the_layer():
    layer, x, gate, _ = made("gated first, groups")
    y = functional.gated_rms_norm(x, gate, layer.weight, 0.1, group_size=4, gate_first=True, gate_activation="sigmoid")
    assert torch.equal(y, layer(x, gate))
    with pytest.raises(ArgumentError, match="group_size of gated_rms_norm must divide the 12 features, got 5"):
        functional.gated_rms_norm(x, gate, group_size=5)
