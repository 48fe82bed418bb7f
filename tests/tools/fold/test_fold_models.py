"""Whole models are folded: paths, sharing, activations, dtypes, modes, errors, and timm's."""

from __future__ import annotations

import copy

import pytest
import torch
from folded_models import DOUBLE, Net, bn, conv, drawn, image, norms_in
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

import normkit
from normkit.errors import ArgumentError, StateError
from normkit.tools.fold import fold_math
from zoo import IMAGES, image_model


def test_training_mode_is_refused_and_kept():
    model = drawn(nn.Sequential(conv(), bn(), nn.Dropout(), conv(), bn()))
    model[1].train()
    model[2].train()
    state = copy.deepcopy(model.state_dict())
    folded, report = normkit.fold(model, image(2).float())
    assert [row.name for row in report.folds] == ["4"]
    assert "training mode and normalizes by the batch: call model.eval()" in report.refusals[0].reason
    for subject in (model, folded):
        assert [module.training for module in subject][:3] == [False, True, True]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_frozen_norms_fold_also_in_training():
    model = drawn(nn.Sequential(conv(), bn())).train()
    normkit.freeze(model)
    x = image(2).float()
    expected = model(x)
    folded, report = normkit.fold(model, x, strict=True)
    assert len(report.folds) == 1
    # float32: a sum of 36 products, scaled by at most 2 and shifted by at most 2 of its size.
    torch.testing.assert_close(folded(x), expected, rtol=1e-5, atol=1e-5)
    normkit.unfreeze(model)
    assert model[1].training


def test_a_pair_used_twice_is_folded():
    model = drawn(Net(lambda s, x: s.bn(s.conv(s.bn(s.conv(x)))), conv=conv(), bn=bn())).double()
    folded, report = normkit.fold(model, image(2))
    assert len(report.folds) == 1
    x = image(2)
    torch.testing.assert_close(folded(x), model(x), **DOUBLE)


def test_flow_that_depends_on_values_is_that_of_the_example():
    model = drawn(Net(lambda s, x: s.bn(s.conv(x if x.sum() > 0 else -x)), conv=conv(), bn=bn()))
    _, report = normkit.fold(model, image(2).float())
    assert len(report.folds) == 1
    assert not report.graph
    assert "for inputs that take the same path as the example" in str(report)


def test_shapes_may_be_asked_and_results_kept():
    def way(self, x):
        y = self.conv(x)
        self.last = y.shape
        return self.bn(y).reshape(y.shape[0], y.size(1), -1)

    model = drawn(Net(way, conv=conv(), bn=bn()))
    folded, report = normkit.fold(model, image(2).float())
    assert len(report.folds) == 1
    assert report.graph
    assert folded.last == (2, 4, 6, 5)
    assert not hasattr(model, "last")


class Optional(nn.Module):
    """The second input changes the flow; with a stand-in for it, tracing would take the way that is not gone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.kept = conv(), bn(), []

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        self.kept.append(y.shape)
        return self.bn(y) if more is None else self.bn(y) + y * more


def test_the_graph_is_that_of_the_arguments_given():
    x = image(2).float()
    model = drawn(Optional())
    folded, report = normkit.fold(model, x)
    assert (len(report.folds), report.graph) == (1, True)
    assert all(type(shape) is torch.Size for shape in folded.kept)
    for example in ((x, x.mean()), {"x": x, "more": x.mean()}):
        _, report = normkit.fold(model, example)
        assert (len(report.folds), report.graph) == (0, True)
        assert "the output of 'conv' also goes to mul()" in str(report)


def test_a_shared_norm_goes_under_all_its_names():
    model = drawn(Net(lambda s, x: s.alias(s.conv(x)), conv=conv(), bn=bn()))
    model.alias = model.bn
    folded, report = normkit.fold(model, image(2).float(), inplace=True)
    assert folded is model
    assert folded.alias is folded.bn
    assert isinstance(folded.bn, nn.Identity)
    assert report.folds[0].names == ("bn", "alias")


def test_an_activation_stays():
    model, x = image_model("efficientnet_lite0")
    drawn(model)
    expected = model(x)
    acts = sum(isinstance(module, nn.ReLU6) for module in model.modules())
    folded, report = normkit.fold(model, x, strict=True)
    assert norms_in(folded) == 0
    assert sum(isinstance(module, nn.ReLU6) for module in folded.modules()) == acts > 30
    assert {row.left for row in report.folds} == {"Identity", "ReLU6"}
    # float32 through 49 layers: a hundred roundings of 1e-7, as in any other order of summation.
    torch.testing.assert_close(folded(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("inplace", [False, True])
def test_outputs_that_move_undo_everything(inplace, monkeypatch: pytest.MonkeyPatch):
    model = drawn(nn.Sequential(conv(), bn(), conv(), bn()))
    normkit.freeze(model[3])
    model.train()
    normkit.freeze(model[1])
    before, state = [*model], {name: id(p) for name, p in model.named_parameters()}
    attributes = [dict(vars(module)) for module in model]
    right = fold_math.after
    monkeypatch.setattr(fold_math, "after", lambda *args: tuple(value * 1.01 for value in right(*args)))
    monkeypatch.setattr("normkit.tools.fold.folding.EXACT", 1.0)
    folded, report = normkit.fold(model, image(2).float(), inplace=inplace)
    assert report.folds == ()
    assert all("folding was undone: outputs changed by 0.0" in row.reason for row in report.refusals)
    assert report.error > report.tolerance
    assert [*model] == before
    assert {name: id(p) for name, p in model.named_parameters()} == state
    assert [dict(vars(module)) for module in model] == attributes
    assert norms_in(folded) == 2


def test_a_model_that_raises_is_as_it_was(monkeypatch: pytest.MonkeyPatch):
    model = drawn(nn.Sequential(conv(), bn()))
    before = [*model]
    with pytest.raises(RuntimeError, match="channels"):
        normkit.fold(model, torch.randn(2, 3, 5, 5), inplace=True)
    monkeypatch.setattr("normkit.tools.fold.folding.Folding.largest_change", lambda *_: 1 / 0)
    weight = model[0].weight
    with pytest.raises(ZeroDivisionError):
        normkit.fold(model, image(2).float(), inplace=True)
    assert [*model] == before
    assert model[0].weight is weight
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model)


@pytest.mark.parametrize(
    ("model", "example", "error", "text"),
    [
        (nn.Sequential(conv(), bn()), "image", ArgumentError, "got str: give one batch"),
        (nn.Sequential(nn.LazyConv2d(4, 3), bn()), image(2), StateError, "'0' does not: call the model once"),
        (Net(lambda s, x: 3, bn=bn()), image(2), ArgumentError, "got none of floating point from Net"),
    ],
)
def test_wrong_arguments(model, example, error, text):
    with pytest.raises(error, match=text):
        normkit.fold(model.eval(), example)


def test_compiled_models_are_refused():
    model = drawn(nn.Sequential(conv(), bn()))
    inside = nn.Sequential(copy.deepcopy(model))
    inside[0].compile(backend="eager")
    for compiled in (torch.compile(model, backend="eager"), inside):
        with pytest.raises(StateError, match="is compiled: call fold first and compile the result"):
            normkit.fold(compiled, image(2).float())
    folded, _ = normkit.fold(model, image(2).float())
    torch._dynamo.reset()
    x = image(2).float()
    torch.testing.assert_close(torch.compile(folded, backend="eager")(x), folded(x))


def test_norms_frozen_by_timm_fold():
    model, x = image_model("mobilenetv2_035")
    from timm.layers import freeze_batch_norm_2d

    model = freeze_batch_norm_2d(drawn(model))
    expected = model(x)
    folded, report = normkit.fold(model, x, strict=True)
    assert len(report.folds) == 52
    assert {row.norm for row in report.folds} == {"FrozenBatchNormAct2d"}
    # As in check_zoo.
    assert (folded(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


class FakeFrozenNorm(nn.Module):
    """Has the buffers of a frozen batch norm, and uses the batch in training all the same."""

    def __init__(self, obeys: bool) -> None:
        super().__init__()
        self.eps, self.obeys = 1e-5, obeys
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        training = self.training and not self.obeys
        mean = x.mean((0, 2, 3)) if training else self.running_mean
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]


@pytest.mark.parametrize("obeys", [True, False])
def test_a_norm_that_was_made_frozen_proves_it(obeys):
    model = nn.Sequential(conv(), FakeFrozenNorm(obeys)).train()
    folded, report = normkit.fold(model, image(2).float())
    assert len(report.folds) == obeys
    if not obeys:
        assert "folded, off by" in report.refusals[0].reason
    assert folded.training


@pytest.mark.parametrize("example", [lambda x: (x,), lambda x: {"x": x}])
def test_examples_by_position_and_by_name(example):
    model = drawn(Net(lambda s, x: {"out": [s.bn(s.conv(x))]}, conv=conv(), bn=bn()))
    _, report = normkit.fold(model, example(image(2).float()))
    assert len(report.folds) == 1
    assert report.to_dict()["folds"][0]["into"] == "conv"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_folded_in_float64(dtype):
    model = drawn(nn.Sequential(conv(), bn())).to(dtype)
    x = image(2).to(dtype)
    folded, report = normkit.fold(model, x, strict=True)
    assert folded[0].weight.dtype == dtype
    # The folded weight and bias are rounded once each, the output once: three units of the last place.
    exact = copy.deepcopy(model).double()(x.double())
    assert (folded(x) - exact).abs().max() <= 3 * torch.finfo(dtype).eps * exact.abs().max()
    assert report.tolerance == torch.finfo(dtype).eps ** 0.5


def test_channels_last_and_gradients_stay():
    model = drawn(nn.Sequential(conv(bias=False), bn())).to(memory_format=torch.channels_last)
    model[0].weight.requires_grad_(False)
    folded, _ = normkit.fold(model, image(2).float())
    assert folded[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not folded[0].weight.requires_grad
    assert not folded[0].bias.requires_grad


# How many batch norms of timm's models go and stay; models not listed have none. Those that stay stand before an
# activation (resnetv2, densenet), on a way without a layer (repvgg), behind several layers (mixnet), or behind a
# change of shape (levit).
FOLDED = {
    "resnet10t": (14, 0),
    "resnet18": (20, 0),
    "resnet50": (53, 0),
    "resnext26ts": (31, 0),
    "seresnet18": (20, 0),
    "resnetv2_50": (32, 17),
    "densenet121": (59, 62),
    "vgg11_bn": (8, 0),
    "mobilenetv2_035": (52, 0),
    "mobilenetv3_small_050": (34, 0),
    "efficientnet_b0": (49, 0),
    "efficientnet_lite0": (49, 0),
    "mixnet_s": (15, 34),
    "mnasnet_small": (46, 0),
    "ghostnet_050": (80, 0),
    "regnetx_002": (44, 0),
    "regnety_002": (44, 0),
    "levit_128s": (4, 48),
    "repvgg_a0": (44, 17),
    "dla34": (37, 0),
    "hrnet_w18_small": (91, 0),
    "inception_v3": (94, 0),
    "xception41": (84, 0),
    "darknet53": (52, 0),
    "volo_d1_224": (3, 0),
}


@torch.no_grad()
def check_zoo(name: str) -> None:
    model, x = image_model(name)
    drawn(model)
    norms = norms_in(model)
    before = model(x)
    folded, report = normkit.fold(model, x, where=lambda _, norm: isinstance(norm, _NormBase))
    assert (len(report.folds), len(report.refusals)) == FOLDED.get(name, (0, 0))
    assert norms_in(folded) == norms - len(report.folds)
    # Folding rounds each weight once more; through a hundred layers of float32 that stays below 1e-5 of the output.
    assert report.error <= 1e-5
    assert (folded(x) - before).abs().max() <= 1e-5 * before.abs().max()


FAST = ("resnet10t", "mobilenetv2_035", "ghostnet_050", "regnetx_002", "resnetv2_50", "repvgg_a0")


@pytest.mark.parametrize("name", FAST)
def test_models_of_timm(name):
    check_zoo(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(IMAGES.keys() - set(FAST)))
def test_all_models_of_timm(name):
    check_zoo(name)
