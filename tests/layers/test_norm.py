"""`Norm`: any region as a layer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import normkit
from normkit.errors import ArgumentError, PatternError, ShapeError


@pytest.mark.parametrize(
    ("norm", "named"),
    [
        (normkit.Norm("b (g [c]) [...]", 6, num_groups=3), normkit.GroupNorm(3, 6)),
        (normkit.Norm("b (g=3 [c]) [...]", 6), normkit.GroupNorm(3, 6)),
        (normkit.Norm("b c [...]", 6), normkit.InstanceNorm2d(6, affine=True)),
        (normkit.Norm("[b] c [...]", 6), normkit.BatchNorm2d(6)),
        (normkit.Norm("b [c] ...", 6, eps=1e-6), normkit.LayerNorm2d(6)),
        (normkit.Norm("... [c]", 5), normkit.LayerNorm(5)),
        (normkit.Norm("... [c1 c2]", (4, 5)), normkit.LayerNorm((4, 5))),
        (normkit.Norm("... [c]", 5, center=False, bias=False), normkit.RMSNorm(5, eps=1e-5)),
    ],
    ids=str,
)
def test_a_pattern_equals_the_layer_of_that_name(norm, named):
    x = torch.randn(2, 6, 4, 5)
    assert [p.shape for p in norm.parameters()] == [p.shape for p in named.parameters()]
    with torch.no_grad():
        for mine, other in zip(norm.parameters(), named.parameters(), strict=True):
            other.normal_()
            mine.copy_(other)
    assert torch.equal(norm(x), named(x))
    assert list(norm.state_dict()) == [name for name in named.state_dict() if name in ("weight", "bias")]


def test_features_of_a_region_over_all():
    """``c`` alone is the weight's dimension, whatever else is reduced."""
    layer = normkit.Norm("b [c ...]", 6)
    assert layer.weight.shape == (6,)
    y = layer(torch.randn(2, 6, 4, 5))
    torch.testing.assert_close(y.mean((1, 2, 3)), torch.zeros(2), rtol=0, atol=1e-6)


def test_text_copies_and_initial_values():
    layer = normkit.Norm("b (g [c]) [...]", num_features=6, num_groups=3, bias=False)
    assert repr(layer) == (
        "Norm('b (g [c]) [...]', num_features=6, num_groups=3, eps=1e-05, affine=True, bias=False, center=True)"
    )
    assert torch.equal(layer.weight, torch.ones(6))
    x = torch.randn(2, 6, 4)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    plain = normkit.Norm("b c [...]", affine=False)
    assert not plain.state_dict()
    assert plain(torch.randn(2, 3, 4)).shape == (2, 3, 4)
    assert plain(torch.randn(2, 7, 4, 4)).shape == (2, 7, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "says"),
    [
        (("b [c", 6), {}, PatternError, r"(?s)never closed\n    b \[c\n      \^"),
        (("b c ...", 6), {}, PatternError, "no axis is in brackets"),
        (("b c [...]",), {}, ArgumentError, "needs num_features for its weight, got None: .*affine=False"),
        (("b (g [c]) [...]", 6), {}, ArgumentError, "write 'g=8', or give num_groups"),
        (("b (g [c]) [...]",), {"affine": False}, ArgumentError, "write 'g=8', or give num_groups"),
        (("b (g [c]) [...]", 6), {"num_groups": 4}, ShapeError, "must be divisible by g=4, got 6"),
        (("b c [...]", 6), {"num_groups": 2}, ArgumentError, "has no axis 'g'"),
        (("b x [...]", 6), {}, ArgumentError, r"0 channel dimensions .*whose name starts with c\), got \(6,\)"),
        (("b [c1 c2]", 6), {}, ArgumentError, r"each of the 2 channel dimensions .* got \(6,\)"),
        (("b c=4 [...]", 6), {}, ShapeError, "must equal c=4, got 6"),
        (("b c [...]", 0), {}, ArgumentError, "num_features of Norm must be at least 1, got 0"),
        (("b c [...]", ()), {}, ArgumentError, r"needs num_features for its weight, got \(\)"),
        ((None, 6), {}, PatternError, "a pattern is text, got NoneType"),
        (("b c [...]", 6), {"eps": -1.0}, ArgumentError, "eps of Norm must not be negative"),
    ],
)
def test_what_is_wrong_is_said_when_the_layer_is_made(arguments, keywords, error, says):
    with pytest.raises(error, match=says):
        normkit.Norm(*arguments, **keywords)


def test_an_input_of_other_channels_is_refused_even_without_weights():
    layer = normkit.Norm("b c [...]", 6, affine=False)
    with pytest.raises(ShapeError, match=r"(?s)must equal c=6, got 5 in shape \(2, 5, 4\).*in Norm\('b c \[...\]'"):
        layer(torch.randn(2, 5, 4))
