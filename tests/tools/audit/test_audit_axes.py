"""Norms over another dimension than that of the features: found where it is certain, and nowhere else."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normkit
import zoo
from normkit.tools.audit.examples import images
from normkit.tools.audit.measure.facts import collect
from normkit.tools.audit.rules.axes import features
from tools.audit.placed import Does, conv, found

X2, X3, TOKENS = images(4, 3, 16, 16), images(4, 6, 20), images(4, 10, 6)
OVER = {"NK108", "NK111"}


class Turned(nn.Module):
    """A layer of someone's own, which exchanges dimensions."""

    def forward(self, x):
        return x.transpose(1, 2)


WRONG = {
    "pool": (nn.Sequential(conv(3, 8), nn.AvgPool2d(2), nn.LayerNorm(8)), X2, "NK108", "2"),
    "norm, activation, pool": (
        nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(), nn.MaxPool2d(2), nn.LayerNorm(8)),
        X2,
        "NK108",
        "5",
    ),
    "adaptive pool": (nn.Sequential(conv(3, 8), nn.AdaptiveAvgPool2d((1, 4)), nn.LayerNorm(4)), X2, "NK108", "2"),
    "sum": (
        Does(lambda m, x: m.norm(m.a(x) + F.gelu(m.b(x))), a=conv(3, 8), b=conv(3, 8), norm=nn.LayerNorm(16)),
        X2,
        "NK108",
        "norm",
    ),
    "concatenation": (
        Does(lambda m, x: m.norm(torch.cat([m.a(x), m.a(x)], 1)), a=conv(3, 8), norm=nn.RMSNorm(16)),
        X2,
        "NK108",
        "norm",
    ),
    "flat map": (
        Does(lambda m, x: m.norm(m.a(x).flatten(2)), a=conv(3, 8), norm=nn.LayerNorm(256)),
        X2,
        "NK108",
        "norm",
    ),
    "interpolation": (
        Does(lambda m, x: m.norm(F.interpolate(m.a(x), scale_factor=2.0)), a=conv(3, 8), norm=nn.LayerNorm(32)),
        X2,
        "NK108",
        "norm",
    ),
    "time of Conv1d": (
        nn.Sequential(nn.Conv1d(6, 8, 3, padding=1), nn.MaxPool1d(2), nn.LayerNorm(10)),
        X3,
        "NK108",
        "2",
    ),
    "three dimensions": (nn.Sequential(nn.Conv3d(3, 8, 1), nn.LayerNorm(5)), images(2, 3, 4, 4, 5), "NK108", "1"),
    "exchanged": (
        Does(lambda m, x: m.norm(m.a(x).transpose(1, 2)), a=nn.Linear(6, 8), norm=nn.LayerNorm(10)),
        TOKENS,
        "NK111",
        "norm",
    ),
    "exchanged by name": (
        Does(lambda m, x: m.norm(m.a(x).mT), a=nn.Linear(6, 8), norm=nn.LayerNorm(10)),
        TOKENS,
        "NK111",
        "norm",
    ),
    "batch norm after linear": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(10)), TOKENS, "NK111", "2"),
    "batch norm after embedding": (
        nn.Sequential(nn.Embedding(9, 8), nn.BatchNorm1d(10)),
        torch.arange(20).view(2, 10) % 9,
        "NK111",
        "1",
    ),
    "batch norm after LSTM": (
        Does(lambda m, x: m.norm(m.a(x)[0]), a=nn.LSTM(6, 8, batch_first=True), norm=nn.BatchNorm1d(10)),
        TOKENS,
        "NK111",
        "norm",
    ),
    "channels last": (
        Does(lambda m, x: m.norm(m.a(x).permute(0, 2, 3, 1)), a=conv(3, 8), norm=normkit.BatchNorm2d(16)),
        X2,
        "NK111",
        "norm",
    ),
    "of the same size": (nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10)), TOKENS, "NK111", "1"),
    "layer of another make": (
        nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), zoo.Plain(nn.Identity(), lambda m, x: x), nn.BatchNorm1d(10)),
        TOKENS,
        "NK111",
        "3",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_norm_over_another_dimension_than_the_features(case):
    model, x, code, place = WRONG[case]
    assert found(model, x, *OVER) == [(code, place)]


class Attention(nn.Module):
    """By hand, with the heads in a dimension of their own."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(8, 24), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, 8)
        return self.norm(x + self.out(y))


def mixed(m, x):
    """Tokens mixed by a linear layer between two exchanges, as in MLP-Mixer."""
    return m.second(x + m.tokens(m.first(x).transpose(1, 2)).transpose(1, 2))


def rows(m, x):
    """Each channel of a convolution becomes a token, as in TokenPose."""
    return m.norm(m.make(m.conv(x).flatten(2)))


RIGHT = {
    "channels last": (Does(lambda m, x: m.norm(m.a(x).permute(0, 2, 3, 1)), a=conv(3, 8), norm=nn.LayerNorm(8)), X2),
    "width as many as channels": (
        Does(lambda m, x: m.norm(m.a(x).permute(0, 2, 3, 1)), a=conv(3, 16), norm=nn.LayerNorm(16)),
        X2,
    ),
    "patches": (Does(lambda m, x: m.norm(m.a(x).flatten(2).transpose(1, 2)), a=conv(3, 8), norm=nn.LayerNorm(8)), X2),
    "pooled": (nn.Sequential(conv(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8)), X2),
    "mean": (Does(lambda m, x: m.norm(m.a(x).mean((2, 3))), a=conv(3, 8), norm=nn.LayerNorm(8)), X2),
    "image and channels": (nn.Sequential(conv(3, 8), nn.LayerNorm([8, 16, 16])), X2),
    "all of an image": (nn.Sequential(conv(3, 8), nn.LayerNorm([16, 16])), X2),
    "our norm of channels": (nn.Sequential(conv(3, 8), normkit.LayerNorm2d(8)), X2),
    "frequencies of a spectrogram": (
        Does(lambda m, x: m.norm(m.a(x).transpose(2, 3)), a=conv(3, 8), norm=nn.LayerNorm(16)),
        X2,
    ),
    "attention": (nn.Sequential(nn.Linear(6, 8), Attention(), Attention()), TOKENS),
    "mixer": (Does(mixed, first=nn.LayerNorm(6), tokens=nn.Linear(10, 10), second=nn.LayerNorm(6)), TOKENS),
    "mixer after a layer": (
        nn.Sequential(
            nn.Linear(6, 8), Does(mixed, first=nn.LayerNorm(8), tokens=nn.Linear(10, 10), second=nn.LayerNorm(8))
        ),
        TOKENS,
    ),
    "mixer of one by one": (
        nn.Sequential(nn.Linear(6, 8), Does(lambda m, x: m.norm(m.a(x)), a=nn.Conv1d(10, 10, 1), norm=nn.LayerNorm(8))),
        TOKENS,
    ),
    "channels as tokens": (Does(rows, conv=conv(3, 8), make=nn.Linear(256, 12), norm=nn.LayerNorm(12)), X2),
    "time mixed first": (
        Does(lambda m, x: m.norm(m.a(x.transpose(1, 2)).transpose(1, 2)), a=nn.Linear(10, 7), norm=nn.LayerNorm(6)),
        TOKENS,
    ),
    "time mixed by one by one": (
        Does(lambda m, x: m.norm(m.a(x.transpose(1, 2)).transpose(1, 2)), a=nn.Conv1d(6, 7, 1), norm=nn.LayerNorm(7)),
        TOKENS,
    ),
    "batch norm after an exchange": (
        Does(lambda m, x: m.norm(m.a(x).transpose(1, 2)), a=nn.Linear(6, 8), norm=nn.BatchNorm1d(8)),
        TOKENS,
    ),
    "batch norm of folded tokens": (
        Does(lambda m, x: m.norm(m.a(x).flatten(0, 1)), a=nn.Linear(6, 8), norm=nn.BatchNorm1d(8)),
        TOKENS,
    ),
    "batch norm of one token": (
        Does(lambda m, x: m.norm(m.a(x)[:, 0]), a=nn.Linear(6, 8), norm=nn.BatchNorm1d(8)),
        TOKENS,
    ),
    "normalized over time on purpose": (
        nn.Sequential(nn.Conv1d(6, 8, 3), nn.GroupNorm(8, 8), nn.InstanceNorm1d(8)),
        X3,
    ),
    "exchanged by a layer of another make": (nn.Sequential(nn.Linear(6, 8), Turned(), nn.BatchNorm1d(8)), TOKENS),
    "exchanged in silence": (nn.Sequential(nn.Linear(6, 10), Turned(), nn.BatchNorm1d(10)), TOKENS),
    "unknown": (nn.Sequential(nn.BatchNorm1d(10)), TOKENS),
    "einsum": (
        Does(lambda m, x: m.norm(torch.einsum("btc->bct", m.a(x))), a=nn.Linear(6, 8), norm=nn.BatchNorm1d(8)),
        TOKENS,
    ),
    "recurrent layer, time first": (Does(lambda m, x: m.norm(m.a(x)[0]), a=nn.GRU(6, 8), norm=nn.LayerNorm(8)), TOKENS),
}


@pytest.mark.parametrize("case", RIGHT)
def test_norms_of_the_features_and_those_that_cannot_be_told_are_left_alone(case):
    model, x = RIGHT[case]
    assert not found(model, x, *OVER)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "mixer_s32_224", "bert", "mamba", "wav2vec2"])
def test_where_the_features_are_is_known_for_most_norms_of_real_models(name):
    model, x = zoo.image_model(name) if name in zoo.IMAGES else zoo.language_model(name)
    subject = collect(model, x, None)
    places, calls = features(subject), [(norm, node) for norm, node in subject.called() if norm.info.axis == "last"]
    known = [(places[node.inputs[0]].axis, len(node.shapes[0]) - 1) for _, node in calls]
    assert all(axis in (None, last) for axis, last in known)
    assert sum(axis is not None for axis, _ in known) > 0.8 * len(known)
