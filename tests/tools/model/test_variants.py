"""Norms that extend a method: by a gate, by a weight for each head; and norms without a weight."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normkit.tools.model.info import Gate
from normkit.tools.model.recognise import describe


def root_mean_square(x, eps=1e-4):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


class GatedNorm(nn.Module):
    """A root mean square norm that uses its gate as a test asks for."""

    def __init__(self, gated, size=6, **attributes):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = 1e-4
        self.gated = gated
        vars(self).update(attributes)

    def norm(self, x, groups=1):
        return root_mean_square(x.unflatten(-1, (groups, -1))).flatten(-2) * self.weight

    def forward(self, x, gate=None):
        return self.gated(self.norm, x, gate)


KNOWN = {
    "after the norm": (lambda norm, x, g: norm(x) * F.silu(g), {}, Gate()),
    "before the norm": (lambda norm, x, g: norm(x if g is None else x * F.silu(g)), {}, Gate(first=True)),
    "sigmoid": (lambda norm, x, g: norm(x) * torch.sigmoid(g), {}, Gate("sigmoid")),
    "no activation": (lambda norm, x, g: norm(x) * g, {"activation": "linear"}, Gate("none")),
    "group size": (lambda norm, x, g: norm(x, 3) * F.silu(g), {"group_size": 2}, Gate(group_size=2)),
    "groups": (lambda norm, x, g: norm(x * F.silu(g), 3), {"n_groups": 3}, Gate(first=True, group_size=2)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_gate_is_known_by_what_it_does(name):
    gated, attributes, gate = KNOWN[name]
    info = describe(GatedNorm(gated, **attributes))
    assert (info.kind, info.base, info.eps, info.gate) == (None, "rms_norm", 1e-4, gate)
    assert info.reason == "its output depends on a gate, which only a layer of the same method keeps"
    assert not info.centers


UNKNOWN = {
    "not used": lambda norm, x, g: norm(x),
    "another meaning without a gate": lambda norm, x, g: norm(x) * F.silu(x if g is None else g),
    "no gradient": lambda norm, x, g: norm(x) * F.silu(g).detach(),
    "unknown activation": lambda norm, x, g: norm(x) * F.hardswish(g),
    "groups that nothing names": lambda norm, x, g: norm(x, 3) * F.silu(g),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_another_use_of_a_gate_is_refused(name):
    info = describe(GatedNorm(UNKNOWN[name]))
    assert (info.kind, info.base, info.gate) == (None, None, None)
    assert info.reason == "GatedNorm computes something that no method of normkit agrees with"


class HeadNorm(nn.Module):
    """A layer norm of the last dimension with a weight for each head, as of queries and keys in Cohere."""

    def __init__(self, over_heads=False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 4))
        self.eps = 1e-4
        self.dims = (-2, -1) if over_heads else (-1,)

    def forward(self, x):
        var, mean = torch.var_mean(x, self.dims, correction=0, keepdim=True)
        return (x - mean) / (var + self.eps).sqrt() * self.weight


def test_a_weight_for_each_head_is_known():
    info = describe(HeadNorm())
    assert (info.kind, info.base, info.shape, info.last_dims) == (None, "layer_norm", (3, 4), (-1,))
    assert info.reason == "it has a weight for each of 3 heads, which no method of the catalog has"
    assert describe(HeadNorm(over_heads=True)).kind == "layer_norm"


class BareNorm(nn.Module):
    """Without a weight: of any number of features."""

    def __init__(self, dim=-1):
        super().__init__()
        self.eps = 1e-4
        self.dim = dim

    def forward(self, x):
        return x / (x.square().mean(self.dim, keepdim=True) + self.eps).sqrt()


class BufferedNorm(BareNorm):
    """Keeps a weight outside its state that it does not use, and that need not be as wide as the input."""

    def __init__(self, persistent=False):
        super().__init__()
        self.register_buffer("weight", torch.ones(6), persistent=persistent)


def test_a_norm_without_weight_is_known():
    info = describe(BareNorm())
    assert (info.kind, info.shape, info.weight, info.last_dims) == ("rms_norm", (), False, (-1,))
    assert "no method of normkit agrees" in describe(BareNorm(dim=1)).reason
    info = describe(BufferedNorm())
    assert (info.kind, info.shape, info.weight) == ("rms_norm", (), False)
    assert describe(BufferedNorm(persistent=True)).reason == "BufferedNorm keeps weight, which the tools do not know"
