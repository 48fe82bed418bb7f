"""Converted models compute what they did, and keep modes, hooks and sharing; the other methods."""

import copy

import pytest
import torch
from converted_models import Net, net, state, unchanged
from torch import nn
from torch.nn import functional as F

import normkit
import zoo
from normkit.errors import ArgumentError, DtypeError
from normkit.tools.model.activated import ChannelAffine
from normkit.tools.model.tree import norms
from tools.subjects import IN_FLOAT32, Run, model_of, randomised

QUICK = ("resnet10t", "mobilenetv3_small_050", "edgenext_xx_small", "llama", "t5", "wav2vec2")


NO_NORMS = ("nfnet_l0", "dm_nfnet_f0")


REFUSED: dict[str, set[str]] = {}
"""What normkit has no layer for."""


def faithful(name):
    """Convert a model, and compare outputs, gradients of all parameters and running statistics."""
    model, x = model_of(name)
    converted, report = normkit.convert(model)
    assert {row.module.split()[1] for row in report.refusals} == REFUSED.get(name, set())
    assert len(report.changes) > 0 or name in NO_NORMS
    assert {facts.origin for place, facts in norms(converted)} <= {"normkit"} or report.refusals
    for training in (False, True):
        truth = Run.of(model, x, training=training, dtype=torch.float64)
        # In float64 another formula or a lost parameter shows at 1e-3 and more, while rounding, 1e-16 for each
        # operation, is enlarged by these models at most as much as float32's is there: 1e-3 of 1e-7, so 1e4.
        tolerance = 2e-6 if name in IN_FLOAT32 else 1e-10
        exact = Run.of(converted, x, training=training, dtype=torch.float64).errors(truth)
        assert max(exact.values()) <= tolerance, max(exact, key=exact.get)
        # In float32 the converted model is as near to the truth as the original: three times its error, because
        # both are random, and at least the rounding of a few operations. A rounding that turns the sign before a
        # ReLU switches a unit on or off, in the one model or in the other; it moves gradients by some 1e-2.
        theirs = Run.of(model, x, training=training, dtype=torch.float32)
        ours = Run.of(converted, x, training=training, dtype=torch.float32)
        assert ours.errors(truth)["output"] <= 3 * theirs.errors(truth)["output"] + 2e-6
        assert ours.gradient_error(truth) <= 3 * theirs.gradient_error(truth) + 2e-2
    fresh = copy.deepcopy(model)
    fresh.load_state_dict(converted.state_dict(), strict=True)
    converted.load_state_dict(model.state_dict(), strict=True)
    assert list(converted.state_dict()) == list(model.state_dict())
    reverted = report.revert(converted)
    assert [type(m) for m in reverted.modules()] == [type(m) for m in model.modules()]
    return report


@pytest.mark.parametrize("name", QUICK)
def test_models_of_others_compute_the_same(name):
    faithful(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in (*zoo.IMAGES, *zoo.TEXT, *zoo.SOUND) if name not in QUICK])
def test_more_models_of_others_compute_the_same(name):
    faithful(name)


def test_a_copy_by_default_in_place_on_request():
    model, x = net()
    before, y = state(model), model(x)
    converted, report = normkit.convert(model)
    assert unchanged(model, [type(m) for m in Net().modules()], before)
    assert isinstance(converted.norm, normkit.BatchNorm2d)
    assert [change.name for change in report.changes] == ["norm", "token"]
    weight = model.norm.weight
    same, _ = normkit.convert(model, inplace=True)
    assert same is model
    # the very parameter: an optimizer made before goes on to work, and what is tied stays tied
    assert model.norm.weight is weight
    torch.testing.assert_close(model(x), y)


def test_a_shared_norm_stays_shared():
    converted, report = normkit.convert(net()[0], to="group_norm", num_groups=4)
    assert converted.norm is converted.alias
    assert isinstance(converted.norm, normkit.GroupNorm)
    assert report.changes[0].names == ("norm", "alias")
    assert "norm (also alias)" in str(report)


def test_mode_and_hooks_go_along():
    model = nn.Sequential(nn.BatchNorm1d(4).eval(), nn.ReLU()).train()
    model[0].eval()
    calls = []
    handle = model[0].register_forward_hook(lambda module, args, y: calls.append(type(module)))
    normkit.convert(model, inplace=True)
    assert not model[0].training
    model(torch.randn(3, 4))
    assert calls == [normkit.BatchNorm1d]
    handle.remove()
    model(torch.randn(3, 4))
    assert len(calls) == 1


def test_the_model_itself_may_be_a_norm():
    converted, report = normkit.convert(nn.LayerNorm(4), to="rms_norm")
    assert isinstance(converted, normkit.Norm)
    assert isinstance(report.revert(converted), nn.LayerNorm)


def test_converted_twice_changes_nothing_more():
    once, _ = normkit.convert(net()[0])
    _, report = normkit.convert(once)
    assert (report.changes, report.refusals, report.kept) == ((), (), ("norm", "token"))
    assert str(report) == "no norm was changed"


FIRST = {
    "BN": normkit.BatchNorm2d,
    "IN": normkit.InstanceNorm2d,
    "GN": normkit.GroupNorm,
    "layer norm": normkit.Norm,
    "LN2d": normkit.LayerNorm2d,
    "RMS": normkit.Norm,
    "affine": ChannelAffine,
    "b (g=2 [c]) ...": normkit.Norm,
}


@pytest.mark.parametrize("to", FIRST)
def test_batch_norm_becomes_any_method(to):
    model, x = net()
    converted, report = normkit.convert(model, to={nn.BatchNorm2d: to})
    assert type(converted.norm) is FIRST[to]
    assert report.kept == ("token",)
    if to == "affine":
        # constants folded in float64 and rounded once
        torch.testing.assert_close(converted(x), model(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(converted.train()(x), model(x), rtol=1e-5, atol=1e-6)
    else:
        torch.testing.assert_close(converted.norm.weight, model.norm.weight)
        torch.testing.assert_close(converted.norm.bias, model.norm.bias)
        assert torch.isfinite(converted(x)).all()


def test_the_values_of_another_method_are_those_of_its_definition():
    model, _ = net()
    x = torch.randn(4, 8, 5, 5)
    for to, expected in {
        "group_norm": F.group_norm(x, 4, model.norm.weight, model.norm.bias),
        "instance_norm": F.instance_norm(x, weight=model.norm.weight, bias=model.norm.bias),
        "layer_norm2d": F.layer_norm(x.mT.movedim(1, -1), (8,), model.norm.weight, model.norm.bias).movedim(-1, 1).mT,
        "layer_norm": F.group_norm(x, 1, model.norm.weight, model.norm.bias),
    }.items():
        converted, _ = normkit.convert(model, to={"batch_norm": to}, num_groups=4)
        torch.testing.assert_close(converted.norm(x), expected)


def test_layer_norm_becomes_rms_norm_with_its_bias():
    layer = randomised(nn.Sequential(nn.LayerNorm(6)))
    x = torch.randn(3, 6)
    converted, _ = normkit.convert(layer, to="RMS")
    torch.testing.assert_close(converted(x), F.rms_norm(x, (6,), layer[0].weight, 1e-5) + layer[0].bias)
    without, _ = normkit.convert(nn.LayerNorm(6, bias=False), to="RMS")
    assert type(without) is normkit.RMSNorm
    groups, _ = normkit.convert(layer, to="GN", num_groups=2)
    torch.testing.assert_close(groups(x), F.group_norm(x, 2, layer[0].weight, layer[0].bias))
    _, report = normkit.convert(layer, to="BN")
    assert "it normalizes the last dimensions, for which normkit has no batch_norm" in report.refusals[0].reason


def test_groups_that_divide():
    _, report = normkit.convert(nn.Sequential(nn.BatchNorm2d(72)), to="GN", num_groups=32)
    assert "32 groups asked, 36 divide 72" in str(report)
    kept, report = normkit.convert(nn.GroupNorm(8, 32), to="group_norm")
    assert (kept.num_groups, report.changes[0].note) == (8, "")
    with pytest.raises(ArgumentError, match="num_groups must be at least 1, got 0: use 32"):
        normkit.convert(nn.Sequential(), to="GN", num_groups=0)


def test_a_mapping_by_class_method_and_name():
    model = nn.ModuleDict(
        {"a": nn.BatchNorm2d(8), "b": nn.BatchNorm2d(8), "c": nn.LayerNorm(8), "d": nn.GroupNorm(2, 8)}
    )
    converted, report = normkit.convert(
        model, to={"a": None, nn.BatchNorm2d: "GN", "layer_norm": "RMS", "d*": "instance norm"}
    )
    kinds = [type(converted[key]) for key in "abcd"]
    assert kinds == [nn.BatchNorm2d, normkit.GroupNorm, normkit.Norm, normkit.Norm]
    assert report.kept == ("a",)


def test_a_class_stands_for_its_method():
    model, _ = net()
    converted, _ = normkit.convert(model, to={nn.BatchNorm2d: nn.GroupNorm, "token": normkit.RMSNorm})
    assert type(converted.norm) is normkit.GroupNorm
    assert type(converted.token) is normkit.Norm
    assert type(normkit.convert(model, to=nn.InstanceNorm2d)[0].norm) is normkit.InstanceNorm2d


def test_a_norm_that_does_not_know_its_channels_stays():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), normkit.Norm("b c [...]", affine=False, bias=False))
    _, report = normkit.convert(model, "group_norm")
    assert [row.reason for row in report.refusals] == ["it has no weight and does not know its channels"]


def test_a_pattern_stands_where_the_channels_are():
    converted, report = normkit.convert(net()[0], to="b [c] ...")
    assert converted.norm.pattern == "b [c] ..."
    assert "the pattern 'b [c] ...' has its channels elsewhere" in report.refusals[0].reason
    converted, report = normkit.convert(net()[0], to="... (g=2 [c])")
    assert converted.token.pattern == "... (g=2 [c])"
    assert [refusal.name for refusal in report.refusals] == ["norm"]


def test_a_function_decides():
    model, _ = net()
    own = nn.Identity()
    converted, report = normkit.convert(model, to=lambda name, module: own if name == "token" else None)
    assert converted.token is own
    assert report.kept == ("norm",)
    assert report.revert(converted).token is not own


def test_names_that_nothing_has():
    model, _ = net()
    with pytest.raises(ArgumentError, match="no normalization is called 'group_nrom': did you mean 'group_norm'"):
        normkit.convert(model, to="group_nrom")
    with pytest.raises(ArgumentError, match=r"no norm of the model is called 'tokem\*': did you mean 'token'"):
        normkit.convert(model, to={"tokem*": "RMS"})
    with pytest.raises(
        ArgumentError, match="'tokem' is neither a norm of the model nor a method: did you mean 'token'"
    ):
        normkit.convert(model, to={"tokem": "RMS"})
    with pytest.raises(ArgumentError, match="got 'weight_norm': insert applies weight norms to the layers themselves"):
        normkit.convert(model, to="weight_norm")
    with pytest.raises(DtypeError, match="to must be a method, a mapping or a function, got int"):
        normkit.convert(model, to=3)
    with pytest.raises(DtypeError, match="a method is named by a string, got int"):
        normkit.convert(model, to=lambda name, module: 3)
    with pytest.raises(DtypeError, match="a key of to must be a class, a method or a name, got 3"):
        normkit.convert(model, to={3: "GN"})
