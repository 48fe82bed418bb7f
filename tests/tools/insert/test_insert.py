"""Insertion: a norm after each layer but the last, on the right dimension, and no bias without effect."""

import copy
import json
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normkit
import zoo
from normkit import catalog
from normkit.errors import ArgumentError, ShapeError, StateError


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(16, 6)


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


class Branching(nn.Module):
    """Cannot be traced: the way depends on the data. The last layer is made first."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.body = nn.Linear(6, 8)
        self.more = nn.Linear(8, 8)

    def forward(self, x):
        x = F.relu(self.body(x))
        if x.sum() > -1:
            x = F.relu(self.more(x))
        return self.head(x)


def norms_of(model):
    return {name: type(module).__name__ for name, module in model.named_modules() if name.endswith("norm")}


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


def test_shared_layers():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(6, 2))
    normed, report = normkit.insert(model, "layer_norm")
    assert normed[0] is normed[2]
    assert len(report.inserted) == 1
    _, report = normkit.insert(model, "batch_norm")
    assert "used 2 times, and the statistics of its uses would be mixed" in report.skipped[0].reason


def test_layers_that_others_read():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 2)

        def forward(self, x):
            return self.b(self.a(x)) * self.a.weight.sum()

    _, report = normkit.insert(Reads(), "LN")
    assert "its weight is read by other code" in report.skipped[0].reason
    attention = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 2))
    assert not normkit.insert(attention, "LN")[1].inserted
    with pytest.warns(UserWarning, match=r"cannot be traced by torch\.fx"):
        _, report = normkit.insert(nn.Sequential(attention, Branching()), "LN")
    assert any("torch's MultiheadAttention reads its weight itself" in row.reason for row in report.skipped)
    assert all(row.name in ("0.1", "1.head", "1.body") for row in report.inserted)


def test_weight_norm_leaves_tied_layers_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 6)
            self.first = nn.Linear(6, 6)
            self.second = nn.Linear(6, 6)
            self.second.weight = self.first.weight
            self.out = nn.Linear(6, 10)
            self.out.weight = self.table.weight
            self.free = nn.Linear(10, 6)
            self.last = nn.Linear(6, 2)

        def forward(self, tokens):
            return self.last(self.free(self.out(self.second(self.first(self.table(tokens))))))

    model, tokens = Tied(), torch.arange(6).reshape(2, 3)
    normed, report = normkit.insert(model, "weight_norm")
    assert [row.name for row in report.inserted] == ["free"]
    assert report.skipped[0].reason == "its weight is shared with 'second', and would no longer be"
    assert [row.reason.split("'")[1] for row in report.skipped[:3]] == ["second", "first", "table"]
    assert normed.first.weight is normed.second.weight
    assert normed.out.weight is normed.table.weight
    torch.testing.assert_close(normed(tokens), model(tokens))
    # weight standardization keeps the stored weight, and with it the tie; norms of activations do not touch it
    standardized, report = normkit.insert(model, "weight standardization")
    assert len(report.inserted) == 4
    originals = [getattr(standardized, name).parametrizations.weight.original for name in ("first", "second")]
    assert originals[0] is originals[1]
    layered = normkit.insert(model, "layer_norm")[0]
    assert layered.first.layer.weight is layered.second.layer.weight


class Autoencoder(nn.Module):
    """Variational: both heads of the encoder are returned, and the decoder works on what they give."""

    def __init__(self, draws):
        super().__init__()
        self.encoder = nn.Linear(6, 8)
        self.mean = nn.Linear(8, 2)
        self.log_variance = nn.Linear(8, 2)
        self.decoder = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6))
        self.draws = draws

    def forward(self, x):
        h = F.relu(self.encoder(x))
        mean, log_variance = self.mean(h), self.log_variance(h)
        if self.draws and x.sum() < 1e9:  # which torch.fx cannot trace
            mean = mean.view_as(mean)
        return {"output": self.decoder(mean + log_variance.exp()), "latent": (mean, log_variance)}


@pytest.mark.parametrize("traced", [True, False])
def test_every_layer_whose_output_is_returned_is_the_last_of_its_branch(traced):
    torch.manual_seed(0)
    model, x = Autoencoder(draws=not traced), torch.randn(4, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if not traced else "error", UserWarning)
        normed, report = normkit.insert(model, "layer_norm", example=x)
    assert report.traced == traced
    assert [row.name for row in report.inserted] == ["encoder", "decoder.0"]
    assert {row.name: row.reason for row in report.skipped} == dict.fromkeys(
        ("mean", "log_variance", "decoder.2"), "it is the last layer"
    )
    assert normed(x)["output"].shape == x.shape


def test_two_heads_of_one_layer_are_the_end_of_a_branch():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(6, 8)
            self.both = nn.Linear(8, 4)
            self.decoder = nn.Linear(2, 6)

        def forward(self, x):
            mean, log_variance = self.both(self.encoder(x)).chunk(2, 1)
            return self.decoder(mean), mean, log_variance

    _, report = normkit.insert(Halves(), "layer_norm")
    assert [row.name for row in report.inserted] == ["encoder"]


def test_a_layer_still_answers_for_itself():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, dilation=2)
            self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
            self.out = nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = F.pad(x, [self.conv.dilation[0]] * 4).to(self.conv.weight.dtype)
            x = self.up(self.conv(x), output_size=(19, 19))
            return self.out(x[:, : self.up.out_channels])

    model, x = Reads(), torch.randn(2, 3, 9, 9)
    normed, report = normkit.insert(model, "BN", only=["up"])
    assert [row.name for row in report.inserted] == ["up"]
    assert normed(x).shape == (2, 2, 19, 19)
    with pytest.warns(UserWarning, match="cannot be traced"):
        normed, _ = normkit.insert(nn.ModuleDict({"net": model}), "BN")
    conv = normed.net.conv
    assert conv.dilation == (2, 2)
    assert conv.weight is conv.layer.weight
    assert normed.net(x).shape == (2, 2, 19, 19)
    for again in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert again.layer is not conv.layer
        torch.testing.assert_close(again(x), conv(x))
    assert type(conv[:1][0]) is nn.Conv2d
    with pytest.raises(AttributeError, match="'Conv2d' object has no attribute 'in_features'"):
        _ = conv.in_features
    assert not hasattr(conv, "_anything")


def test_tokens_are_not_taken_for_features():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    normed, _ = normkit.insert(model, "BN")  # that inputs are tokens is not known here
    with pytest.raises(ShapeError, match=r"the input must be \(N, C\), got shape \(2, 5, 5\)"):
        normed(torch.randn(2, 5, 6))
    assert normed(torch.randn(4, 6)).shape == (4, 2)
    again = pickle.loads(pickle.dumps(normed))
    with pytest.raises(ShapeError, match=r"the input must be \(N, C\), got shape \(2, 5, 5\)"):
        again(torch.randn(2, 5, 6))
    with pytest.raises(ShapeError, match=r"the input must be \(N, C\), got shape \(2, 5, 5\)"):
        normkit.SyncBatchNorm.convert(again)(torch.randn(2, 5, 6))


def test_shapes_of_an_example_decide():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    _, report = normkit.insert(model, "BN", example=torch.randn(2, 5, 6))
    assert "its output of shape (2, 5, 8) has more than batch and features" in report.skipped[0].reason
    conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    _, report = normkit.insert(conv, "IN", example=torch.randn(2, 3, 3, 3))
    assert "is one single element, so that it would erase its input" in report.skipped[0].reason
    assert normkit.insert(nn.Sequential(nn.Conv1d(3, 8, 3), nn.Conv1d(8, 2, 1)), "IN")[1].inserted


def test_refusals_of_linear_layers():
    model, _ = mlp()
    _, report = normkit.insert(model, "IN")
    assert "no positions to normalize over" in report.skipped[0].reason
    _, report = normkit.insert(model, "GN", num_groups=8)
    assert "one single element, so that it would erase its input" in report.skipped[0].reason


def test_only_some_layers_in_place():
    model, x = mlp()
    same, report = normkit.insert(model, "LN", only="2", inplace=True)
    assert same is model
    assert norms_of(model) == {"2.norm": "LayerNorm"}
    assert not report.skipped
    again = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(again(x), model(x))


def test_mode_dtype_and_hooks():
    model, x = mlp()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    normed, report = normkit.insert(model.double().eval(), "BN")
    assert not normed[0].norm.training
    assert normed[0].norm.weight.dtype is torch.float64
    normed(x.double())
    assert calls == [1]
    # what a hook makes of the bias is not known
    assert [row.bias_dropped for row in report.inserted] == [False, True]


def test_wrong_names():
    model, _ = mlp()
    with pytest.raises(ArgumentError, match="no normalization is called 'layer_nrom': did you mean 'layer_norm'"):
        normkit.insert(model, "layer_nrom")
    with pytest.raises(ArgumentError, match="got 'LRN': add it to the model by hand"):
        normkit.insert(model, "LRN")
    with pytest.raises(ArgumentError, match=r"no layer of the model is called 'x\*': known: 0, 2, 4"):
        normkit.insert(model, "LN", only=["x*"])
    model.note = torch.ones(2, requires_grad=True) * 2
    with pytest.raises(StateError, match=r"the model cannot be copied .* use inplace=True"):
        normkit.insert(model, "LN")


def test_the_report_is_data():
    _, report = normkit.insert(mlp()[0], "RMS")
    data = json.loads(json.dumps(report.to_dict()))
    assert data["inserted"][0] == {"name": "0", "layer": "Linear(6, 8)", "norm": "RMSNorm(8)", "bias_dropped": False}
    assert str(report).splitlines()[0] == "0: Linear(6, 8) + RMSNorm(8)"
    assert str(normkit.insert(nn.ReLU(), "LN")[1]) == "no layer was found"
