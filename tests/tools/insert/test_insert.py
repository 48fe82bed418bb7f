"""Insertion: a norm after each layer but the last, on the right dimension, and no bias without effect."""

import copy
import warnings

import pytest
import torch
from plain_models import Branching, mlp, norms_of
from torch import nn
from torch.nn import functional as F

import normkit
import zoo
from normkit import catalog


@pytest.mark.parametrize("row", [row for row in catalog.METHODS if row.target], ids=lambda row: row.name)
def test_a_norm_has_the_eps_that_its_method_has_by_default(row):
    model, _ = normkit.insert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), row.name)
    assert model[0].norm.eps == (torch.finfo(torch.float32).eps if row.eps is None else row.eps)


def cnn():
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3), nn.ReLU())
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), torch.randn(4, 3, 8, 8)


class Residual(nn.Module):
    """A stem, two residual blocks without norms, and two heads."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"first": nn.Conv2d(8, 8, 3, padding=1), "second": nn.Conv2d(8, 8, 3, padding=1)})
            for _ in range(2)
        )
        self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 2)])

    def forward(self, x, scale=None):
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = F.relu(x + block["second"](F.relu(block["first"](x))))
        x = x.mean((2, 3)) if scale is None else x.mean((2, 3)) * scale
        return torch.cat([head(x) for head in self.heads], 1)


KINDS = {
    "batch_norm": ("BatchNorm1d", "BatchNorm2d"),
    "layer_norm": ("LayerNorm", "Norm"),
    "group_norm": ("Norm", "GroupNorm"),
    "rms_norm": ("RMSNorm", "Norm"),
}


@pytest.mark.parametrize("method", KINDS)
def test_every_layer_but_the_last(method):
    for model, x, names, kind in [(*mlp(), ("0", "2"), 0), (*cnn(), ("0.0", "0.2"), 1)]:
        normed, report = normkit.insert(model, method)
        assert report.traced
        assert [row.name for row in report.inserted] == list(names)
        assert [row.reason for row in report.skipped] == ["it is the last layer"]
        assert norms_of(normed) == {f"{name}.norm": KINDS[method][kind] for name in names}
        layer = normed.get_submodule(names[0])
        assert isinstance(layer.norm(layer.layer(x)), torch.Tensor)
        normed(x).sum().backward()
        assert all(p.grad is not None for p in normed.parameters())
        # the model that was given is as it was
        assert not norms_of(model)


def test_the_norm_stands_before_the_activation():
    model, x = cnn()
    normed, _ = normkit.insert(model, "instance_norm")
    conv, transposed = model[0][0], model[0][2]
    expected = F.relu(F.instance_norm(conv(x)))
    expected = F.relu(F.instance_norm(transposed(expected))).mean((2, 3))
    # the dropped biases change nothing: rounding of values about 1
    torch.testing.assert_close(normed(x), model[3](expected), rtol=1e-4, atol=1e-5)
    assert normed[0][0].layer.bias is None
    assert normed[3].bias is not None


def test_a_bias_is_dropped_only_where_it_is_subtracted_again():
    model, x = cnn()
    for method, drops in {"BN": True, "IN": True, "GN": False, "LN": False, "LN2d": False, "RMS": False}.items():
        normed, report = normkit.insert(model, method)
        assert [row.bias_dropped for row in report.inserted] == [drops, drops], method
        assert (normed[0][0].layer.bias is None) == drops
        normed.train()(x)
    _, report = normkit.insert(model, "GN", num_groups=8)
    assert [row.bias_dropped for row in report.inserted] == [True, True]
    with_bias = nn.Sequential(model[0][0], nn.BatchNorm2d(8))
    without = copy.deepcopy(with_bias)
    without[0].bias = None
    torch.testing.assert_close(without(x), with_bias(x), rtol=1e-5, atol=1e-5)


def test_residual_nets():
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    normed, report = normkit.insert(model, "batch_norm")
    assert [row.name for row in report.inserted] == [
        "stem",
        "blocks.0.first",
        "blocks.0.second",
        "blocks.1.first",
        "blocks.1.second",
    ]
    assert [row.name for row in report.skipped] == ["heads.0", "heads.1"]
    normed.train()(x)
    assert all(m.num_batches_tracked == 1 for m in normed.modules() if isinstance(m, nn.BatchNorm2d))


def test_norms_of_weights():
    model, x = cnn()
    normed, report = normkit.insert(model, "weight_norm")
    assert [row.norm for row in report.inserted] == ["weight_norm", "weight_norm"]
    # each output channel has a length of its own: dimension 1 of a transposed convolution
    assert normed[0][0].parametrizations.weight.original0.shape == (8, 1, 1, 1)
    assert normed[0][2].parametrizations.weight.original0.shape == (1, 4, 1, 1)
    assert not hasattr(normed[3], "parametrizations")
    torch.testing.assert_close(normed(x), model(x))
    standardized, _ = normkit.insert(model, "weight standardization")
    torch.testing.assert_close(standardized[0][0].weight.mean((1, 2, 3)), torch.zeros(8), atol=1e-6, rtol=0)
    _, report = normkit.insert(normed, "weight_norm")
    assert all("already" in row.reason or "last" in row.reason for row in report.skipped)
    assert len(report.skipped) == 3


def test_what_cannot_be_traced_goes_by_the_order_of_calls():
    torch.manual_seed(0)
    model, x = Branching(), torch.randn(4, 6)
    with pytest.warns(UserWarning, match=r"Branching cannot be traced by torch.fx: .* from the order of calls"):
        normed, report = normkit.insert(model, "layer_norm", example=x)
    assert not report.traced
    assert [row.name for row in report.inserted] == ["body", "more"]
    assert [row.name for row in report.skipped] == ["head"]
    normed(x)
    with pytest.warns(UserWarning, match="from the order of modules; pass example="):
        _, report = normkit.insert(model, "layer_norm")
    assert [row.name for row in report.skipped] == ["more"]


def test_a_layer_that_has_a_norm_gets_no_second():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    model.extend([nn.LocalResponseNorm(3), nn.Conv2d(8, 2, 3)])
    _, report = normkit.insert(model, "GN")
    assert [row.reason for row in report.skipped] == ["a norm follows already"] * 2 + ["it is the last layer"]
    once, _ = normkit.insert(mlp()[0], "LN")
    _, report = normkit.insert(once, "LN")
    assert not report.inserted
    resnet, _ = zoo.image_model("resnet10t")
    _, report = normkit.insert(resnet, "GN", example=torch.randn(2, 3, 64, 64))
    assert {row.reason for row in report.skipped} == {"a norm follows already", "it is the last layer"}
    assert not report.inserted


@pytest.mark.slow
def test_a_network_of_another_library_without_norms():
    torch.manual_seed(0)
    model, x = zoo.image_model("nfnet_l0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        normed, report = normkit.insert(model, "batch_norm", example=x)
    assert len(report.inserted) > 40
    assert "head.fc" in {row.name for row in report.skipped}
    assert normed.train()(x).shape == model(x).shape
