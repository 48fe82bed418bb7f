"""What calibration stores is finite as it is stored, and the model is as it was where it would not be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import normkit
from normkit.errors import ArgumentError, StateError


def model_with(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), norm).eval()


def test_running_statistics_that_overflow_are_refused():
    """Inputs of the norm with a variance of about a million."""
    model = model_with(nn.GroupNorm(2, 4)).half()
    with torch.no_grad():
        model[0].weight.mul_(1000)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(8, 3, 6, 6)
    text = r"the running statistics that calibrate finds must be finite as torch\.float16.*: convert the model"
    for inplace in (False, True):
        with pytest.raises(StateError, match=text):
            normkit.convert(model, to="batch_norm", calibrate=[x.half()], inplace=inplace)
        assert type(model[1]) is nn.GroupNorm
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    converted, _ = normkit.convert(model.float(), to="batch_norm", calibrate=[x])
    y = model[0](x).detach().double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(converted[1].running_var.double(), y.var(1, correction=1), rtol=1e-5, atol=0)


def test_a_weight_that_overflows_is_refused():
    """A channel that is small next to its neighbours is made large again, by a factor beyond float16."""
    model = model_with(nn.BatchNorm2d(4)).half()
    with torch.no_grad():
        model[0].weight[0].mul_(1e-3)
        model[0].bias.zero_()
        model[1].weight[0] = 1000.0
        model[1].running_var.zero_()
    with pytest.raises(StateError, match="the weights that calibrate finds must be finite as"):
        normkit.convert(model, to="rms_norm", calibrate=[torch.randn(8, 3, 6, 6).half()])


@pytest.mark.parametrize("batches", [torch.randn(2, 3, 6, 6), {"input": torch.randn(2, 3, 6, 6)}])
def test_a_single_batch_in_place_of_several_is_refused(batches):
    with pytest.raises(ArgumentError, match=r"calibrate must be batches, got one .*: put it into a list"):
        normkit.convert(model_with(nn.BatchNorm2d(4)), to="group_norm", calibrate=batches)
