"""`convert` to and from the norms with running statistics of their own, and regions that only look like theirs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normkit
from normkit.tools.model.recognise import describe


@pytest.mark.parametrize("method", ["switchable_norm", "power_norm", "iter_norm"])
def test_a_batch_norm_becomes_it_and_it_a_group_norm(method: str):
    model, report = normkit.convert(nn.Sequential(nn.BatchNorm2d(32)), to=method, example=torch.randn(2, 32, 3, 3))
    assert [change.method for change in report.changes] == [method]
    assert describe(model[0]).kind == method
    weight = model[0].weight
    back, _ = normkit.convert(model, to="group_norm", inplace=True)
    assert isinstance(back[0], normkit.GroupNorm)
    assert back[0].weight is weight


def test_a_switchable_norm_needs_positions():
    _, report = normkit.convert(nn.Sequential(nn.BatchNorm1d(8)), to="switchable_norm", example=torch.randn(4, 8))
    assert "region 'b c [...]' is one single element, so that it would erase its input" in str(report.refusals[0])


@pytest.mark.parametrize(
    ("pattern", "options"),
    [("[b] (g [c]) [...]", {"num_groups": 2}), ("[b] c [...]", {"center": False}), ("b [...] c", {})],
)
def test_a_region_alone_is_none_of_these_methods(pattern: str, options: dict[str, object]):
    info = describe(normkit.Norm(pattern, num_features=8, **options))
    assert (info.kind, info.reason) == (None, "its region is a pattern of its own")
