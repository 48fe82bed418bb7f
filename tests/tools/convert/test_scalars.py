"""Slope, shift and gain that calibration finds for layers without statistics."""

from __future__ import annotations

import numpy
import pytest
import torch
from scipy import optimize, special
from torch import nn

import normkit
import zoo


def remaining(function, x: numpy.ndarray, y: numpy.ndarray) -> float:
    """Root of the share of the variance that weight and bias of each channel leave, by numpy's least squares."""
    wrong = 0.0
    for z, target in zip(function(x).T, y.T, strict=True):
        design = numpy.stack([z, numpy.ones_like(z)], 1)
        wrong += ((design @ numpy.linalg.lstsq(design, target, rcond=None)[0] - target) ** 2).sum()
    return float(numpy.sqrt(wrong / ((y - y.mean(0)) ** 2).sum()))


def pair(shift: float = 0.0) -> tuple[nn.Module, list[torch.Tensor], numpy.ndarray, numpy.ndarray]:
    """A model, batches, and the input and output of its norm in float64."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16))
    nn.init.normal_(model[0].bias, shift, 0.3)
    nn.init.uniform_(model[1].weight, 0.5, 2)
    nn.init.normal_(model[1].bias)
    batches = [torch.randn(64, 6) * scale for scale in (1.0, 2.0, 4.0)]
    x = model[0](torch.cat(batches)).detach()
    return model, batches, x.double().numpy(), model[1](x).detach().double().numpy()


def test_dynamic_tanh_has_the_best_slope():
    model, batches, x, y = pair()
    converted, report = normkit.convert(model, to="dyt", calibrate=batches)
    best = optimize.minimize_scalar(
        lambda log: remaining(lambda v: numpy.tanh(v * numpy.exp(log)), x, y), bounds=(-4, 2), method="bounded"
    )
    # The minimum is flat: where the error is the same to six digits, the slope is the same to three.
    assert report.changes[0].residual == pytest.approx(best.fun, rel=1e-6)
    assert converted[1].alpha.item() == pytest.approx(numpy.exp(best.x), rel=2e-3)
    assert report.changes[0].note == f"alpha {converted[1].alpha.item():.3g}"
    with torch.no_grad():
        wrong = converted(torch.cat(batches)).double().numpy() - y
    assert numpy.sqrt((wrong**2).sum() / ((y - y.mean(0)) ** 2).sum()) == pytest.approx(best.fun, rel=1e-4)
    fixed, _ = normkit.convert(model, to="dyt")
    assert fixed[1].alpha.item() == 0.5


def test_dynamic_erf_has_the_best_slope_and_shift():
    model, batches, x, y = pair(shift=2.0)
    converted, report = normkit.convert(model, to="derf", calibrate=batches)
    best = optimize.minimize(
        lambda p: remaining(lambda v: special.erf(v * numpy.exp(p[0]) + p[1]), x, y), [-1.0, 0.0], method="Nelder-Mead"
    )
    assert report.changes[0].residual == pytest.approx(best.fun, rel=1e-5)
    assert converted[1].alpha.item() == pytest.approx(numpy.exp(best.x[0]), rel=1e-2)
    assert converted[1].shift.item() == pytest.approx(best.x[1], rel=2e-2)
    without = optimize.minimize_scalar(
        lambda log: remaining(lambda v: special.erf(v * numpy.exp(log)), x, y), bounds=(-4, 2), method="bounded"
    )
    assert best.fun < 0.98 * without.fun


def test_a_batch_norm_gets_the_smallest_slope():
    """In evaluation it is linear, to which a smaller slope always comes nearer."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    batches = [torch.randn(8, 3, 5, 5)]
    normkit.recalibrate(model, batches)
    converted, report = normkit.convert(model, to="dyt", calibrate=batches)
    assert not converted[1].channels_last
    x, y = (
        t.movedim(1, -1).reshape(-1, 4).detach().double().numpy()
        for t in (model[0](batches[0]), model.eval()[:2](batches[0]))
    )
    slope = 0.5 / numpy.sqrt((x**2).mean())
    assert converted[1].alpha.item() == pytest.approx(slope, rel=1e-5)
    best, smaller = (remaining(lambda v, s=s: numpy.tanh(v * s), x, y) for s in (slope, slope / 2))
    assert report.changes[0].residual == pytest.approx(best, rel=1e-4)
    assert smaller < best


def test_a_removed_norm_leaves_a_gain():
    model, batches, x, y = pair()
    converted, report = normkit.convert(model, to="identity", calibrate=batches)
    gain = numpy.sqrt((y**2).mean() / (x**2).mean())
    assert float(converted[1].gain) == pytest.approx(gain, rel=1e-4)
    residual = numpy.sqrt(((x * gain - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum())
    assert report.changes[0].residual == pytest.approx(residual, rel=1e-4)
    assert converted.state_dict().keys() == {"0.weight", "0.bias", "1.gain"}
    plain, report = normkit.convert(model, to="identity")
    assert type(plain[1]) is nn.Identity
    assert str(report) == "1: torch LayerNorm -> Identity()"
    assert type(report.revert(plain)[1]) is nn.LayerNorm
    torch.testing.assert_close(plain(batches[0]), model(batches[0]))


def test_an_activation_outlives_its_norm():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), zoo._timm().layers.BatchNormAct2d(4)).eval()
    x = torch.randn(2, 3, 4, 4)
    plain, _ = normkit.convert(model, to="identity")
    y = model[0](x)
    # The activation works in place, and not on the input of the norm.
    assert torch.equal(plain[1](y), y.relu())
    assert not torch.equal(y, y.relu())
    with_gain, report = normkit.convert(model, to="identity", calibrate=[x])
    assert report.changes[0].residual < 0.1
    torch.testing.assert_close(with_gain(x), (model[0](x) * with_gain[1].gain).relu())


def test_what_cannot_be_removed():
    _, report = normkit.convert(nn.Sequential(nn.Linear(4, 4), normkit.GlobalResponseNorm(4)), to="identity")
    assert report.refusals[0].reason == "global_response_norm does more than normalize, which would be lost"
    gated = normkit.GatedRMSNorm(4)
    _, report = normkit.convert(nn.Sequential(gated), to="identity")
    assert "gate" in report.refusals[0].reason


def test_batches_that_can_be_read_once_and_half_precision():
    model, batches, _, _ = pair()
    once, _ = normkit.convert(model, to="dyt", calibrate=iter(batches))
    often, _ = normkit.convert(model, to="dyt", calibrate=batches)
    assert torch.equal(once[1].alpha, often[1].alpha)
    half, _ = normkit.convert(model.half(), to="dyt", calibrate=[x.half() for x in batches])
    assert half[1].alpha.dtype == torch.float16
    assert half[1].alpha.item() == pytest.approx(once[1].alpha.item(), rel=2e-2)
