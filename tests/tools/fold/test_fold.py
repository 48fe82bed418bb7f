"""A folded model gives what it gave; what cannot be folded without a wrong result stays, with the reason."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrizations

import normkit
from normkit.errors import ArgumentError, StateError
from normkit.tools.fold import fold_math
from zoo import IMAGES, image_model

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
# In float64, rounding of a few hundred additions and a division by a standard deviation of at least 0.7.
DOUBLE = {"rtol": 1e-11, "atol": 1e-11}


def drawn(model: nn.Module) -> nn.Module:
    """Statistics and parameters as after training: at their initial values a wrong fold would go unseen."""
    for module in model.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
    return model.eval()


def norms_in(model: nn.Module) -> int:
    return sum(isinstance(module, _NormBase) for module in model.modules())


def image(dims: int, channels: int = 4) -> Tensor:
    return torch.randn(2, channels, *(6, 5, 7)[:dims], dtype=torch.float64)


def pairs() -> list:
    found = []
    for dims, groups, bias in itertools.product((1, 2, 3), (1, 2), (True, False)):
        for kind, more in ((CONVS, {"padding": 1, "stride": 2}), (TRANSPOSED, {"output_padding": 1, "stride": 2})):
            layer = kind[dims](4, 6, 3, groups=groups, bias=bias, dtype=torch.float64, **more)
            found.append((layer, BATCH_NORMS[dims](6, dtype=torch.float64), image(dims)))
    for bias in (True, False):
        linear = nn.Linear(4, 6, bias=bias, dtype=torch.float64)
        found.append((linear, nn.BatchNorm1d(6, affine=bias, dtype=torch.float64), torch.randn(5, 4).double()))
    instance = nn.InstanceNorm2d(6, affine=True, track_running_stats=True, dtype=torch.float64)
    found.append((nn.Conv2d(4, 6, 3, dtype=torch.float64), instance, image(2)))
    found.append((nn.Conv2d(4, 6, 3, dtype=torch.float64), normkit.BatchNorm2d(6, dtype=torch.float64), image(2)))
    return found


@pytest.mark.parametrize(("layer", "norm", "x"), pairs())
def test_a_norm_goes_into_the_layer_before_it(layer, norm, x):
    model = drawn(nn.Sequential(layer, norm))
    before = copy.deepcopy(model)
    folded, report = normkit.fold(model, x)
    assert [type(module) for module in folded] == [type(layer), nn.Identity]
    torch.testing.assert_close(folded(x), before(x), **DOUBLE)
    assert [(row.name, row.into, row.side) for row in report.folds] == [("1", "0", "before")]
    assert report.graph
    # The model itself is as it was.
    assert model[1] is norm
    assert all(torch.equal(value, before.state_dict()[key]) for key, value in model.state_dict().items())


def layers_after() -> list:
    found = []
    for dims, groups, bias in itertools.product((1, 2, 3), (1, 2), (True, False)):
        layer = CONVS[dims](4, 6, 3, groups=groups, bias=bias, dtype=torch.float64)
        found.append((BATCH_NORMS[dims](4, dtype=torch.float64), layer, image(dims)))
    circular = nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", dtype=torch.float64)
    found.append((nn.BatchNorm2d(4, dtype=torch.float64), circular, image(2)))
    found.append((nn.BatchNorm1d(4).double(), nn.Linear(4, 6, bias=False).double(), torch.randn(5, 4).double()))
    return found


@pytest.mark.parametrize(("norm", "layer", "x"), layers_after())
def test_a_norm_goes_into_the_layer_after_it(norm, layer, x):
    model = drawn(nn.Sequential(nn.ReLU(), norm, layer))
    folded, report = normkit.fold(model, x)
    torch.testing.assert_close(folded(x), model(x), **DOUBLE)
    assert [(row.name, row.into, row.side) for row in report.folds] == [("1", "2", "after")]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("layer", "padding"),
    [*itertools.product([nn.Conv2d, nn.ConvTranspose2d], [0, 1]), (nn.Conv2d, "same"), (nn.Conv2d, "valid")],
)
def test_a_shift_does_not_pass_zeros_or_overlaps(layer, padding, groups):
    norm = nn.BatchNorm2d(4, dtype=torch.float64)
    model = drawn(nn.Sequential(nn.ReLU(), norm, layer(4, 6, 3, padding=padding, groups=groups).double()))
    x = image(2)
    folded, report = normkit.fold(model, x)
    possible = layer is nn.Conv2d and padding in (0, "valid")
    assert len(report.folds) == possible
    if not possible:
        why = "the zeros of its padding are not" if layer is nn.Conv2d else "a transposed convolution spreads"
        assert f"cannot be folded into '2', which follows it: {why}" in report.refusals[0].reason
    # A norm that only scales passes both.
    norm.running_mean.zero_()
    nn.init.zeros_(norm.bias)
    folded, report = normkit.fold(model, x)
    assert len(report.folds) == 1
    torch.testing.assert_close(folded(x), model(x), **DOUBLE)


def test_a_convolution_of_a_single_point_needs_no_padding_to_be_same():
    assert fold_math.shift_is_lost(nn.Conv2d(4, 4, 1, padding="same")) == ""
    assert fold_math.shift_is_lost(nn.Conv2d(4, 4, (1, 3), padding="same")) != ""


def test_norms_on_both_sides_and_one_behind_the_other():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.BatchNorm2d(6))
    model = drawn(model.double())
    folded, report = normkit.fold(model, image(2))
    assert norms_in(folded) == 0
    assert {row.into for row in report.folds} == {"1"}
    x = image(2)
    torch.testing.assert_close(folded(x), model(x), **DOUBLE)


class Net(nn.Module):
    """Layers put together by a function."""

    def __init__(self, forward, **layers) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.way = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def conv(inside: int = 4, outside: int = 4, **more) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, padding=1, **more)


class Standardized(nn.Conv2d):
    """A weight that is computed in forward: its scale is without effect."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight / weight.std((1, 2, 3), keepdim=True), self.bias, padding=1)


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda *_: None)
    return layer


def own_forward(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: x + 1
    return layer


def tied(net: Net) -> Net:
    net.other.weight = net.conv.weight
    return net


def bn() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(4)


REFUSED = {
    "a convolution used with and without the norm": (
        Net(lambda s, x: s.bn(s.conv(x)) + s.conv(x * 2), conv=conv(), bn=bn()),
        "the output of 'conv' also goes to add()",
    ),
    "a convolution used with two norms": (
        Net(lambda s, x: s.bn(s.conv(x)) + s.bn2(s.conv(x)), conv=conv(), bn=bn(), bn2=bn()),
        "the output of 'conv' also goes to 'bn2'",
    ),
    "a norm used behind two convolutions": (
        Net(lambda s, x: s.bn(s.conv(x)) + s.bn(s.other(x)), conv=conv(), other=conv(), bn=bn()),
        "does not come straight from one convolution",
    ),
    "an output used twice": (
        Net(lambda s, x: (lambda y: s.bn(y) + y)(s.conv(x)), conv=conv(), bn=bn()),
        "the output of 'conv' also goes to add()",
    ),
    "an output changed in place": (
        Net(lambda s, x: s.bn(s.conv(x).relu_()), conv=conv(), bn=bn()),
        "the output of 'conv' also goes to relu_()",
    ),
    "an output that is also returned": (
        Net(lambda s, x: (lambda y: (s.bn(y), y))(s.conv(x)), conv=conv(), bn=bn()),
        "the output of 'conv' also goes to the caller of the model",
    ),
    "a view between": (
        Net(lambda s, x: s.bn(s.conv(x)[:, :, ::2]), conv=conv(), bn=bn()),
        "does not come straight from one convolution",
    ),
    "an activation between": (
        Net(lambda s, x: s.bn(s.act(s.conv(x))), conv=conv(), act=nn.ReLU(), bn=bn()),
        "does not come straight from one convolution",
    ),
    "a weight that is computed": (
        Net(lambda s, x: s.bn(s.conv(x)), conv=parametrizations.weight_norm(conv()), bn=bn()),
        "the weight of 'conv' is computed from others",
    ),
    "a weight that is computed in forward": (
        Net(lambda s, x: s.bn(s.conv(x)), conv=Standardized(4, 4, 3), bn=bn()),
        "'conv' or the norm computes more than its parameters say",
    ),
    "a weight that is read elsewhere": (
        Net(lambda s, x: s.bn(s.conv(x)) * s.conv.weight.sum(), conv=conv(), bn=bn()),
        "the weight of 'conv' is also read by sum()",
    ),
    "a weight that two layers share": (
        tied(Net(lambda s, x: s.bn(s.conv(x)) + s.other(x), conv=conv(), other=conv(), bn=bn())),
        "the weight of 'conv' is also read by conv2d()",
    ),
    "hooks": (Net(lambda s, x: s.bn(s.conv(x)), conv=hooked(conv()), bn=bn()), "'conv' has hooks"),
    "hooks on the norm": (Net(lambda s, x: s.bn(s.conv(x)), conv=conv(), bn=hooked(bn())), "it has hooks"),
    "a forward of its own": (
        Net(lambda s, x: s.bn(s.conv(x)), conv=own_forward(conv()), bn=bn()),
        "'conv' has a forward of its own",
    ),
    "no statistics": (
        Net(lambda s, x: s.bn(s.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4, track_running_stats=False)),
        "no running statistics",
    ),
    "not reached": (Net(lambda s, x: s.conv(x), conv=conv(), bn=bn()), "the example does not reach it"),
    "the norm of another dimension": (
        Net(lambda s, x: s.bn(s.fc(x.flatten(2))), fc=nn.Linear(30, 4), bn=nn.BatchNorm1d(4)),
        "another dimension than 'fc' makes",
    ),
    "the graph knows another use": (
        Net(lambda s, x: s.bn(s.conv(x)) if type(x) is Tensor else s.bn(s.conv(x)) + s.conv(x), conv=conv(), bn=bn()),
        "the model's graph has another path from 'conv'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("inplace", [False, True])
def test_what_would_be_wrong_is_refused_with_the_reason(case, inplace):
    model, reason = REFUSED[case]
    model = drawn(copy.deepcopy(model))
    before = [*model.modules()]
    x = image(2).float()
    expected = model(x)
    folded, report = normkit.fold(model, x, inplace=inplace)
    assert report.folds == ()
    assert reason in str(report)
    assert (folded is model) == inplace
    assert [*model.modules()] == before
    torch.testing.assert_close(folded(x), expected, rtol=0, atol=0)
    with pytest.raises(StateError, match="strict=True allows no norm to stay"):
        normkit.fold(model, x, strict=True)


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
        with pytest.raises(StateError, match="is compiled: fold first and compile the result"):
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
    folded, report = normkit.fold(model, x)
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
