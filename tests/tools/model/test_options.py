"""Norms of normkit with an activation of their own, and with weights kept around 0: tools keep what they do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normkit
from normkit.tools.model.activated import fusible, module_of
from normkit.tools.model.recognise import describe


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh"])
def test_an_activation_survives_conversion_and_folding(activation):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), normkit.BatchNorm2d(8, activation=activation))
    nn.init.normal_(model[1].running_mean), nn.init.uniform_(model[1].running_var, 0.5, 2)
    nn.init.normal_(model[1].weight), nn.init.normal_(model[1].bias)
    x = torch.randn(2, 3, 8, 8)
    assert normkit.convert(model, to="GN")[0][1].activation == activation
    assert normkit.convert(model, to="affine")[1].refusals
    assert fusible({"act": module_of(activation)}) == activation
    model.eval()
    folded, report = normkit.fold(model, x)
    assert len(report.folds) == 1
    # The same numbers in another order of two products: a few roundings.
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)


def test_options_of_precision_are_described():
    facts = describe(normkit.RMSNorm(4, zero_centered=True, cast="before", dtype=torch.bfloat16))
    assert (facts.offset, facts.rounds_twice) == (1.0, True)
    assert describe(normkit.RMSNorm(4)).offset == 0.0
