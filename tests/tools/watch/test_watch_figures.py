"""The figures that a watch records are those of float64, and it leaves the model as it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from watched import everything, run, small, train

import normkit
from normkit.tools.watch import NormRecord
from zoo import image_model, language_model

# Moments are kept in float32: one rounding of each number that is summed up, and a few of the sums.
CLOSE = {"rel": 1e-5, "abs": 1e-6}


def per_channel(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel in float64, by their definition."""
    x = x.detach().double()
    mean = x.mean(dims, keepdim=True)
    return mean.flatten(), (x - mean).square().mean(dims).sqrt().flatten()


def assert_moments(record: NormRecord, what: str, x: Tensor, dims: tuple[int, ...]) -> None:
    mean, std = per_channel(x, dims)
    expected = {
        "mean": x.double().mean(),
        "std": x.double().std(correction=0),
        "mean_min": mean.min(),
        "mean_max": mean.max(),
        "std_min": std.min(),
        "std_max": std.max(),
    }
    found = {key: getattr(record, f"{what}_{key}") for key in expected}
    assert found == pytest.approx({key: float(value.detach()) for key, value in expected.items()}, **CLOSE)


NORMS = {
    "batch": (nn.BatchNorm2d(6), (4, 6, 5, 3), (0, 2, 3)),
    "batch of ours, channels_last": (normkit.BatchNorm2d(6), (4, 6, 5, 3), (0, 2, 3)),
    "layer": (nn.LayerNorm(6), (4, 5, 6), (0, 1)),
    "layer over two dimensions": (normkit.LayerNorm((3, 2)), (4, 5, 3, 2), (0, 1)),
    "group": (nn.GroupNorm(2, 6), (4, 6, 5), (0, 2)),
    "rms": (normkit.RMSNorm(6), (7, 6), (0,)),
    "instance": (nn.InstanceNorm1d(6, affine=True, track_running_stats=True), (4, 6, 5), (0, 2)),
    "pixel": (normkit.LayerNorm2d(6), (4, 6, 5, 2), (0, 2, 3)),
    "local response": (nn.LocalResponseNorm(3), (4, 6, 5, 2), (0, 2, 3)),
    "frozen": (normkit.FrozenBatchNorm2d(6), (4, 6, 5, 2), (0, 2, 3)),
}


@pytest.mark.parametrize("case", NORMS)
def test_figures_are_those_of_float64(case: str):
    norm, shape, dims = NORMS[case]
    norm = copy.deepcopy(norm).train()
    for p in norm.parameters():
        nn.init.normal_(p, 1.0)
    x = torch.randn(shape) * 3 + 20
    x = x.to(memory_format=torch.channels_last) if "channels_last" in case else x
    x.requires_grad_()
    model = nn.Sequential(norm)
    running = [copy.deepcopy(getattr(norm, key, None)) for key in ("running_mean", "running_var")]
    with normkit.watch(model, every=1) as watched:
        y = model(x)
        slope = torch.randn_like(y)
        y.backward(slope)
    (record,) = watched.records
    assert (record.step, record.norm, record.kind, record.call) == (0, "0", type(norm).__name__, 0)
    assert_moments(record, "input", x, dims)
    assert_moments(record, "output", y, dims)
    assert record.channels == per_channel(x, dims)[0].numel()
    assert record.grad_output == pytest.approx(slope.double().square().sum().sqrt().item(), **CLOSE)
    assert (record.dead, record.nonfinite_input, record.nonfinite_grad) == (0, 0, 0)
    for key in ("weight", "bias"):
        value = getattr(norm, key, None)
        if isinstance(value, Tensor):
            assert getattr(record, f"{key}_min") == value.min().item()
            assert getattr(record, f"{key}_max") == value.max().item()
        if isinstance(value, nn.Parameter):
            assert getattr(record, f"grad_{key}") == pytest.approx(value.grad.double().norm().item(), **CLOSE)
        else:
            assert getattr(record, f"grad_{key}") is None
    if running[0] is None:
        assert record.running_shift is None
        return
    mean, var = (r.double() for r in running)
    values = x.detach().double().transpose(0, 1)
    if case == "instance":
        fresh = x.detach().double().var(2, correction=1).mean(0)
    else:
        fresh = values.flatten(1).var(1, correction=1)
    shift = ((values.flatten(1).mean(1) - mean).abs() / (var + norm.eps).sqrt()).max().item()
    factor = (fresh + norm.eps) / (var + norm.eps)
    assert record.running_shift == pytest.approx(shift, **CLOSE)
    assert record.running_var_ratio == pytest.approx(torch.maximum(factor, 1 / factor).max().item(), **CLOSE)


def test_padding_and_residual():
    norm = normkit.BatchNorm1d(3)
    x, r = torch.randn(2, 3, 5) + 4, torch.randn(2, 3, 5)
    with normkit.watch(norm, every=1) as watched:
        norm(x, residual=r, lengths=[5, 2], return_residual=True)[0].sum().backward()
    (record,) = watched.records
    real = torch.cat([(x + r)[0], (x + r)[1, :, :2]], 1)
    assert_moments(record, "input", real, (1,))
    assert record.norm == "(the model)"
    # Padded outputs are 0; with them, the deviation would be 15 % smaller.
    assert record.output_std == pytest.approx(1.0, rel=1e-4)


def test_one_instance_without_a_batch_dimension():
    norm = nn.InstanceNorm1d(3, track_running_stats=True)
    x = torch.randn(3, 7, requires_grad=True)
    with normkit.watch(norm, every=1) as watched:
        norm(x).sum().backward()
    assert_moments(watched.records[0], "input", x, (1,))
    assert watched.records[0].channels == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype):
    norm = nn.LayerNorm(6).to(dtype)
    x = (torch.randn(9, 6) + 1).to(dtype)
    with normkit.watch(norm, every=1) as watched:
        norm(x).float().square().sum().backward()
    assert_moments(watched.records[0], "input", x, (0,))
    assert watched.records[0].grad_weight == pytest.approx(norm.weight.grad.double().norm().item(), rel=1e-2)


def test_dead_channels():
    norm = nn.BatchNorm1d(4)
    with torch.no_grad():
        norm.weight[1] = -1e-4
    x = torch.randn(32, 4)
    x[:, 2] = 5.0  # its deviation is lost in eps
    with normkit.watch(norm, every=1) as watched:
        norm(x).sum().backward()
        norm(torch.cat([x, torch.tensor([[0, 0, 0, torch.nan]])])).sum().backward()
    first, second = watched.records
    assert (first.dead, first.dead_weights, first.nonfinite_input) == (2, 1, 0)
    assert (second.nonfinite_input, second.nonfinite_grad) == (1, 0)


def test_a_single_value_per_channel_is_not_dead():
    norm = nn.LayerNorm(4)
    with normkit.watch(norm, every=1) as watched:
        norm(torch.randn(4)).sum().backward()
        norm(torch.randn(0, 4)).sum().backward()
    assert [record.dead for record in watched.records] == [None, None]
    assert watched.records[1].input_mean is None


def test_gradients_that_are_not_finite_are_counted():
    norm = nn.LayerNorm(4)
    with normkit.watch(norm, every=1) as watched:
        y = norm(torch.randn(2, 4))
        y.backward(torch.tensor([[0, torch.inf, 0, 0], [0, torch.nan, 1, 1]]))
    assert watched.records[0].nonfinite_grad == 2


def test_the_weight_is_that_which_is_applied():
    norm = normkit.RMSNorm(4, zero_centered=True)
    with normkit.watch(norm, every=1) as watched:
        norm(torch.randn(2, 4)).sum().backward()
    assert (watched.records[0].weight_min, watched.records[0].weight_max, watched.records[0].dead_weights) == (1, 1, 0)


def subjects() -> dict[str, Any]:
    return {
        "small": lambda: (small(), torch.randn(16, 4)),
        "ours": lambda: (small(normkit.BatchNorm1d(8)), torch.randn(16, 4)),
        "resnet10t": lambda: image_model("resnet10t"),
        "vit": lambda: image_model("vit_tiny_patch16_224", depth=2),
        "bert": lambda: language_model("bert"),
        "llama": lambda: language_model("llama"),
    }


@pytest.mark.parametrize("name", subjects())
def test_the_model_does_not_notice(name: str):
    model, x = subjects()[name]()
    model.train()
    twin = copy.deepcopy(model)
    modules = everything(model)["modules"]
    expected, random = run(twin, x, 3)
    # The models are recognised by running unknown norms on random numbers, which must not move those of the user.
    torch.manual_seed(5)
    state = torch.get_rng_state()
    watched = normkit.watch(model, every=2)
    assert torch.equal(torch.get_rng_state(), state)
    found, random_after = run(model, x, 3)
    watched.close()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(random, random_after)
    assert everything(model)["modules"] == modules
    assert all(torch.equal(v, everything(twin)["state"][k]) for k, v in everything(model)["state"].items())
    assert {record.step for record in watched.records} == {0, 2}
    assert {r.norm for r in watched.records} == {place.name for place, _ in normkit.tools.model.tree.norms(model)}
    assert all(r.input_std > 0 and r.grad_weight is not None and r.grad_output is not None for r in watched.records)


def test_between_watched_steps_only_the_counter_is_there():
    model = small()
    before = everything(model)["modules"]
    seen = []
    model[3].register_forward_hook(
        lambda *_: seen.append((len(model[1]._forward_hooks), len(model[1]._forward_pre_hooks)))
    )
    with normkit.watch(model, every=3) as watched:
        train(model, 5)
        assert everything(model)["modules"]["1"] == before["1"]
        assert len(model._forward_pre_hooks) == 1
        assert not model._forward_hooks
    assert seen == [(1, 1), (0, 0), (0, 0), (1, 1), (0, 0)]
    assert [record.step for record in watched.records] == [0, 3]
    assert watched.steps == 5
