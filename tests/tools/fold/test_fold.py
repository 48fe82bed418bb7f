"""Folded models give the same outputs; refused is whatever would change them."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from folded_models import DOUBLE, Net, bn, conv, drawn, image, norms_in
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import normkit
from normkit.errors import StateError
from normkit.tools.fold import fold_math

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


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


def test_a_model_that_is_folded_for_training_is_finished_first():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    x = torch.randn(2, 3, 5, 5)
    trained, _ = normkit.fold_for_training(model, x)
    with pytest.raises(StateError, match=r"'0' is folded for training: call normkit.finish\(model\) first"):
        normkit.fold(trained.eval(), x)
