"""Recalibrated statistics are those of the data, in float64, for every kind of norm, mask and phase."""

from __future__ import annotations

import copy

import pytest
import torch
from recalibrated_models import ROUNDING, UNEVEN, batches_of, pooled, stack
from torch import Tensor, nn

import normkit
from normkit.tools.recalibrate import moments


@pytest.mark.parametrize("home", [nn, normkit])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [("BatchNorm1d", (3,)), ("BatchNorm1d", (3, 5)), ("BatchNorm2d", (3, 4, 2)), ("BatchNorm3d", (3, 1, 2, 4))],
)
def test_uneven_batches_give_the_moments_of_their_concatenation(home, kind, shape):
    norm = getattr(home, kind)(3)
    batches = batches_of(*shape, drift=2.0)
    report = normkit.recalibrate(norm, batches)
    mean, var = pooled(torch.cat(batches))
    torch.testing.assert_close(norm.running_mean.double(), mean, **ROUNDING)
    torch.testing.assert_close(norm.running_var.double(), var, **ROUNDING)
    (row,) = report.norms
    assert (row.outcome, row.elements, report.batches) == ("new", torch.cat(batches)[:, 0].numel(), len(UNEVEN))
    assert norm.num_batches_tracked == len(UNEVEN)
    assert norm.training


class Masked(nn.Module):
    """Takes padded sequences, and says to its norm which positions are real, in one of the ways there are."""

    def __init__(self, norm: nn.Module, way: str) -> None:
        super().__init__()
        self.norm, self.way = norm, way

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        real = torch.arange(x.shape[2]) < lengths[:, None]
        if self.way == "lengths":
            return self.norm(x, lengths=lengths)
        if self.way == "residual":
            return self.norm(x / 4, mask=real, residual=3 * x / 4)
        return self.norm(input=x, mask=real)


def padded(samples: list[Tensor], size: int) -> list[dict[str, Tensor]]:
    """Batches with garbage as padding, which would show in any statistics."""
    made = []
    for part in (samples[i : i + size] for i in range(0, len(samples), size)):
        lengths = torch.tensor([x.shape[1] for x in part])
        batch = torch.full((len(part), part[0].shape[0], int(lengths.max()) + 2), 1e6)
        for row, x in zip(batch, part, strict=True):
            row[:, : x.shape[1]] = x
        made.append({"x": batch, "lengths": lengths})
    return made


@pytest.mark.parametrize("way", ["mask", "lengths", "residual"])
@pytest.mark.parametrize("kind", [normkit.BatchNorm1d, normkit.InstanceNorm1d])
def test_statistics_of_masked_data_are_those_of_the_data_without_padding(kind, way):
    norm = kind(3, track_running_stats=True)
    samples = [torch.randn(3, n) * 4 + 2 for n in (7, 1, 2, 5, 3)]
    if kind is normkit.InstanceNorm1d:
        samples = [x for x in samples if x.shape[1] > 1]  # a single value has no variance
    model = Masked(norm, way)
    report = normkit.recalibrate(model, padded(samples, 2))
    if kind is normkit.BatchNorm1d:
        everything_real = torch.cat(samples, 1).double()
        mean, var = everything_real.mean(1), everything_real.var(1, correction=1)
    else:
        mean = torch.stack([x.double().mean(1) for x in samples]).mean(0)
        var = torch.stack([x.double().var(1, correction=1) for x in samples]).mean(0)
    # x / 4 is exact and 3 * x / 4 rounds once, in each of the values.
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if way == "residual" else ROUNDING
    torch.testing.assert_close(norm.running_mean.double(), mean, **tolerance)
    torch.testing.assert_close(norm.running_var.double(), var, **tolerance)
    assert report.norms[0].elements == sum(x.shape[1] for x in samples)


def test_padding_alone_is_no_data():
    norm = normkit.BatchNorm1d(3)
    batches = padded([torch.randn(3, 4), torch.randn(3, 2)], 1)
    nothing = {"x": torch.full((2, 3, 4), 1e6), "lengths": torch.tensor([0, 0])}
    normkit.recalibrate(model := Masked(norm, "lengths"), batches)
    expected = copy.deepcopy(norm)
    report = normkit.recalibrate(model, [batches[0], nothing, batches[1]])
    assert torch.equal(norm.running_var, expected.running_var)
    assert norm.num_batches_tracked == 2
    assert report.norms[0].elements == 6


def test_a_single_real_value_meets_the_statistics_so_far():
    norm = normkit.BatchNorm1d(2)
    samples = [torch.randn(2, 5), torch.randn(2, 1)]
    normkit.recalibrate(Masked(norm, "mask"), padded(samples, 1))
    data = torch.cat(samples, 1).double()
    torch.testing.assert_close(norm.running_mean.double(), data.mean(1), **ROUNDING)
    torch.testing.assert_close(norm.running_var.double(), data.var(1, correction=1), **ROUNDING)


def test_the_mask_of_one_instance():
    norm = normkit.InstanceNorm1d(2, track_running_stats=True)
    x = torch.randn(2, 5)
    real = torch.tensor([True, True, True, False, False])
    normkit.recalibrate(norm, [x], forward=lambda m, x: m(x, mask=real))
    torch.testing.assert_close(norm.running_mean.double(), x[:, :3].double().mean(1), **ROUNDING)
    torch.testing.assert_close(norm.running_var.double(), x[:, :3].double().var(1, correction=1), **ROUNDING)


def test_a_mask_over_images():
    norm = normkit.BatchNorm2d(3)
    x, real = torch.randn(2, 3, 4, 5), torch.rand(2, 4, 5) > 0.5
    normkit.recalibrate(norm, [x], forward=lambda m, x: m(x, mask=real))
    data = torch.stack([x[:, c][real] for c in range(3)]).double()
    torch.testing.assert_close(norm.running_mean.double(), data.mean(1), **ROUNDING)
    torch.testing.assert_close(norm.running_var.double(), data.var(1, correction=1), **ROUNDING)


def test_a_mean_a_million_times_the_deviation_is_no_obstacle():
    norm = nn.BatchNorm2d(3)
    batches = batches_of(3, 8, 8, scale=1e-2, mean=1e4)
    normkit.recalibrate(norm, batches)
    mean, var = pooled(torch.cat(batches))
    torch.testing.assert_close(norm.running_mean.double(), mean, **ROUNDING)
    torch.testing.assert_close(norm.running_var.double(), var, **ROUNDING)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    batches = batches_of(3, 4, 2, drift=1.0)
    whole, cut = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    normkit.recalibrate(whole, batches)
    monkeypatch.setattr(moments, "CHUNK", 10)
    normkit.recalibrate(cut, batches)
    torch.testing.assert_close(cut.running_var, whole.running_var, **ROUNDING)


@pytest.mark.parametrize("home", [nn, normkit])
def test_instances_count_once_each_whatever_their_size(home):
    norm = home.InstanceNorm1d(3, track_running_stats=True)
    inputs = [torch.randn(4, 3, 5), torch.randn(1, 3, 50) + 3, torch.randn(3, 7) - 2]
    normkit.recalibrate(norm, inputs)
    instances = [sample.double() for x in inputs for sample in (x if x.dim() == 3 else x[None])]
    mean = torch.stack([x.mean(1) for x in instances]).mean(0)
    var = torch.stack([x.var(1, correction=1) for x in instances]).mean(0)
    torch.testing.assert_close(norm.running_mean.double(), mean, **ROUNDING)
    torch.testing.assert_close(norm.running_var.double(), var, **ROUNDING)


def test_one_phase_collects_what_training_shows_the_layers():
    model = stack().train()
    batches = batches_of(4, sizes=(5, 7, 2))
    twin = copy.deepcopy(model)
    twin[3].p = 0.0
    seen: list[Tensor] = []
    twin[5].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for x in batches:
        twin(x)
    normkit.recalibrate(model, batches)
    mean, var = pooled(torch.cat(seen))
    # The oracle's inputs went through the same float32 layers, so they are the same bits.
    torch.testing.assert_close(model[5].running_mean.double(), mean, **ROUNDING)
    torch.testing.assert_close(model[5].running_var.double(), var, **ROUNDING)


def test_as_many_phases_as_norms_are_a_fixed_point_of_evaluation():
    model = stack()
    batches = batches_of(4, drift=1.0)
    report = normkit.recalibrate(model, batches, phases=2)
    model.eval()
    x = torch.cat(batches)
    for layer in model:
        if isinstance(layer, nn.BatchNorm1d):
            mean, var = pooled(x)
            # Batched matrix products round differently from one large one: a few units of the values' size.
            torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(layer.running_var.double(), var, rtol=1e-5, atol=0)
        x = layer(x)
    assert [row.exact for row in report.norms] == [True, True]
    again = normkit.recalibrate(model, batches, phases=30)
    assert again.phases == 2
    assert [row.mean_shift for row in again.norms] == [0.0, 0.0]


def deep(depth: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(depth)))


def off(model: nn.Sequential, x: Tensor) -> list[float]:
    """How far each norm's variance is from that of what it gets in evaluation, relative, worst channel."""
    errors = []
    for linear, norm, _ in (blocks := model.eval()):
        seen = pooled(linear(x))[1]
        errors.append((norm.running_var.double() / seen - 1).abs().max().item())
        x = blocks[len(errors) - 1](x)
    return errors


@pytest.mark.parametrize(
    ("phases", "exact"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (4, [0, 1, 3, 4]), (6, [*range(6)])]
)
def test_fewer_phases_make_the_first_norm_of_each_group_exact(phases, exact):
    model = deep(6)
    data = torch.randn(64, 8)
    batches = [x + i / 16 for i, x in enumerate(data.split(2))]
    report = normkit.recalibrate(model, batches, phases=phases)
    errors = off(model, torch.cat(batches))
    assert [i for i, row in enumerate(report.norms) if row.exact] == exact
    # float32 through six layers, summed in another order, against a mismatch of percents.
    assert all((error < 1e-5) == (i in exact) for i, error in enumerate(errors))
    # The statistics of the others are those of training: off, but not more from norm to norm.
    assert max(errors) < 2.0


def test_a_deep_stack_of_one_phase_is_off_in_evaluation():
    """What the phases are for: with few samples per batch the batch's own statistics hide the drift."""
    model = stack()
    model[5].eps = 1e-9
    batches = batches_of(4, sizes=(2,) * 20, drift=0.5)
    off = {}
    for phases in (1, 2):
        subject = copy.deepcopy(model)
        normkit.recalibrate(subject, batches, phases=phases)
        y = subject.eval()(torch.cat(batches))
        off[phases] = (y.var(0) - 1).abs().max().item()
    # With the statistics of its input the last norm has outputs of variance 1, to rounding.
    assert off[2] < 1e-5
    assert off[1] > 0.1
