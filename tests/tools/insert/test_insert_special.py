"""Insertion where layers share weights, end a branch, take tokens or are named; the report."""

import copy
import json
import pickle
import warnings

import pytest
import torch
from plain_models import Branching, mlp, norms_of
from torch import nn
from torch.nn import functional as F

import normkit
from normkit.errors import ArgumentError, ShapeError, StateError


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
