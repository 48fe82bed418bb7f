"""Recalibrated statistics of the norms that keep others than batch norm's, against their formulas in float64."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from recalibrated_models import ROUNDING, batches_of, pooled
from torch import Tensor, distributed, nn

import normkit
from normkit.errors import StateError
from normkit.tools.recalibrate import moments

SHAPE = (4, 3, 2)


def columns(x: Tensor) -> Tensor:
    """(channels, values), in float64."""
    return x.double().transpose(0, 1).flatten(1)


def whitening_by_eigenvectors(x: Tensor, groups: int, eps: float) -> Tensor:
    values = columns(x)
    found = []
    for part in values.chunk(groups):
        spread = torch.cov(part, correction=0) + eps * torch.eye(len(part), dtype=torch.float64)
        lengths, vectors = torch.linalg.eigh(spread)
        found.append(vectors @ torch.diag(lengths.rsqrt()) @ vectors.T)
    return torch.stack(found)


# With 30 of Newton's iterations the matrix is the inverse root itself, to rounding.
NORMS = {
    "switchable": lambda: normkit.SwitchableNorm(4),
    "iter": lambda: normkit.IterNorm(4, num_groups=2, iterations=30),
    "iter, one group": lambda: normkit.IterNorm(4, iterations=30),
    "power": lambda: normkit.PowerNorm(4),
    "power, no warm-up": lambda: normkit.PowerNorm(4, warmup_iters=0),
    "evo": lambda: normkit.EvoNorm2dB0(4),
}


def expected(norm: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The statistics of all values at once."""
    mean, var = pooled(x)
    if isinstance(norm, normkit.IterNorm):
        return {"running_mean": mean, "running_whitening": whitening_by_eigenvectors(x, norm.num_groups, norm.eps)}
    if isinstance(norm, normkit.PowerNorm):
        return {"running_phi": columns(x).square().mean(1)}
    return {"running_var": var} if isinstance(norm, normkit.EvoNorm2dB0) else {"running_mean": mean, "running_var": var}


def assert_recalibrated(norm: nn.Module, x: Tensor) -> None:
    for name, value in expected(norm, x).items():
        tolerance = ROUNDING | ({"atol": 2e-7 * float(value.abs().max())} if name == "running_whitening" else {})
        torch.testing.assert_close(getattr(norm, name).double(), value, **tolerance, msg=name)


@pytest.mark.parametrize("kind", NORMS)
def test_uneven_batches_give_the_statistics_of_their_concatenation(kind: str):
    norm = NORMS[kind]()
    batches = batches_of(*SHAPE, drift=2.0, mean=1.0)
    report = normkit.recalibrate(norm, batches)
    assert_recalibrated(norm, torch.cat(batches))
    (row,) = report.norms
    assert (row.outcome, row.elements, row.exact) == ("new", columns(torch.cat(batches)).shape[1], True)
    assert norm.training
    again = normkit.recalibrate(norm, batches)
    assert again.norms[0].mean_shift == 0.0
    # The old whitening matrix times the inverse of the same one: products of float32 numbers, solved in float64.
    assert again.norms[0].var_ratio == pytest.approx(1.0, abs=1e-12)


def test_a_mean_a_million_times_the_deviation_is_no_obstacle():
    for norm in (normkit.SwitchableNorm(4), normkit.IterNorm(4, eps=1e-12, iterations=30), normkit.EvoNorm2dB0(4)):
        batches = batches_of(*SHAPE, sizes=(40, 70), scale=1e-2, mean=1e4)
        normkit.recalibrate(norm, batches)
        assert_recalibrated(norm, torch.cat(batches))


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(moments, "CHUNK", 10)
    for kind in NORMS:
        batches = batches_of(*SHAPE, drift=1.0)
        normkit.recalibrate(norm := NORMS[kind](), batches)
        assert_recalibrated(norm, torch.cat(batches))


@pytest.mark.parametrize("kind", NORMS)
def test_padding_does_not_count_and_a_residual_is_added_first(kind: str):
    norm = NORMS[kind]()
    x, residual = torch.randn(2, 6, *SHAPE) + 1
    mask = torch.rand(6, *SHAPE[1:]) > 0.3
    hidden = x.masked_fill(~mask[:, None], 1e6)
    call = {"mask": mask, "residual": residual}
    report = normkit.recalibrate(norm, [hidden], forward=lambda model, x: model(x, **call))
    valid = (x + residual).movedim(1, -1)[mask]
    assert_recalibrated(norm, valid)
    assert report.norms[0].elements == int(mask.sum())


@pytest.mark.parametrize("kind", NORMS)
def test_phases_make_a_stack_a_fixed_point_of_evaluation(kind: str):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), NORMS[kind](), nn.Tanh(), nn.Conv2d(4, 4, 1), NORMS[kind]())
    batches = batches_of(*SHAPE, sizes=(3, 2, 4), drift=1.0)
    report = normkit.recalibrate(model, batches, phases=2)
    assert [row.exact for row in report.norms] == [True, True]
    model.eval()
    x = torch.cat(batches)
    for norm, before in ((model[1], model[:1]), (model[4], model[:4])):
        for name, value in expected(norm, before(x).detach()).items():
            # Convolutions of another batch size round otherwise; the matrix has entries near 1 / deviation.
            torch.testing.assert_close(getattr(norm, name).double(), value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", NORMS)
def test_statistics_that_are_not_finite_are_made_anew(kind: str):
    """What the remedy of NK306 says, also with another norm after this one, which sees its outputs meanwhile."""
    model = nn.Sequential(NORMS[kind](), nn.BatchNorm2d(4))
    for name, buffer in model[0].named_buffers():
        if name.startswith("running"):
            buffer.fill_(torch.nan)
    batches = batches_of(*SHAPE)
    report = normkit.recalibrate(model, batches)
    assert_recalibrated(model[0], torch.cat(batches))
    assert [row.outcome for row in report.norms] == ["new", "new"]
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_power_norm_keeps_its_warm_up_and_the_statistic_of_its_gradient():
    norm = normkit.PowerNorm(4, warmup_iters=3)
    for x in batches_of(*SHAPE, sizes=(4, 4)):
        norm(x).square().sum().backward()
    nu = norm.running_gradient.clone()
    assert nu.all()
    normkit.recalibrate(norm, batches_of(*SHAPE, sizes=(4,) * 7))
    assert norm.num_batches_tracked == 2
    assert torch.equal(norm.running_gradient, nu)
    other = normkit.SwitchableNorm(4)
    normkit.recalibrate(other, batches_of(*SHAPE, sizes=(4,) * 7))
    assert other.num_batches_tracked == 7


@pytest.mark.parametrize("kind", NORMS)
def test_an_error_leaves_all_as_it_was(kind: str):
    model = nn.Sequential(NORMS[kind](), nn.Conv2d(4, 3, 1))
    model(torch.randn(5, *SHAPE))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(StateError, match="those of '0' are not after 2 batches"):
        normkit.recalibrate(model, [torch.randn(5, *SHAPE), torch.full((5, *SHAPE), torch.inf)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[0].training


def test_a_single_value_meets_the_statistics_so_far():
    for norm in (normkit.IterNorm(4), normkit.PowerNorm(4), normkit.EvoNorm2dB0(4)):
        batches = [torch.randn(5, 4, 1, 1), torch.randn(1, 4, 1, 1)]
        normkit.recalibrate(norm, batches)
        data = torch.cat(batches)
        name, value = next(iter(expected(norm, data).items()))
        torch.testing.assert_close(getattr(norm, name).double(), value, **ROUNDING)
        with pytest.raises(StateError, match="a statistic needs two values per channel, '' got one from 1 batches"):
            normkit.recalibrate(norm, batches[1:])


def test_the_report_measures_the_change_of_a_whitening_matrix():
    norm = normkit.IterNorm(2, eps=0.0, iterations=30)
    norm.running_whitening.copy_(torch.diag(torch.tensor([1.0, 0.5])))
    x = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [1.0, -2.0], [-1.0, -2.0]]) * torch.tensor([3.0, 1.0])
    (row,) = normkit.recalibrate(norm, [x + torch.tensor([6.0, 0.0])]).norms
    # Variances 9 and 4, where the old matrix has 1 and 4; the mean has gone from 0 to 6, two deviations.
    assert (row.mean_shift, row.var_ratio) == (pytest.approx(2.0, rel=1e-5), pytest.approx(9.0, rel=1e-5))


def test_ranks_are_pooled(tmp_path: Path):
    """The way through the sums over ranks, without a second process."""
    model = nn.Sequential(*(NORMS[kind]() for kind in NORMS), nn.BatchNorm2d(4))
    alone, batches = copy.deepcopy(model), batches_of(*SHAPE, drift=1.0)
    expected_report = normkit.recalibrate(alone, batches)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert normkit.recalibrate(model, batches) == expected_report
    finally:
        distributed.destroy_process_group()
    assert all(torch.equal(value, alone.state_dict()[name]) for name, value in model.state_dict().items())
