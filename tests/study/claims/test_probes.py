"""Measurements of trained models against their definitions, and the effects that are computed from them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from normkit.study.analysis import cells
from normkit.study.claims import judging
from normkit.study.claims.evolved import evo_norm_s0_1
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.pointwise import dyt_1
from normkit.study.claims.response import grn_1
from normkit.study.claims.running import iter_norm_1, power_norm_2, revin_1, switchable_norm_1
from normkit.study.claims.spectral_norm import sn_1
from normkit.study.suite import networks, transformers
from normkit.study.task import probes
from normkit.study.training.design import Design
from normkit.study.training.trial import Run, Trial

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(130, 1, 8, 8, generator=GENERATOR)


def convnet(method: str) -> nn.Sequential:
    return networks.convnet(method, 0, channels=((8, 1), (8, 2)))


def test_the_condition_number_is_that_of_the_covariance() -> None:
    model = convnet("batch_norm")
    nn.init.uniform_(model[1].weight, 0.5, 2.0)  # the scale does not count
    found = probes.of_statistics(model, IMAGES)["condition"]
    values = model[0](IMAGES[:64]).detach().double().transpose(0, 1).flatten(1).numpy()
    # Standardized values: their covariance is the correlation of the convolution's outputs.
    logs = [np.log(np.linalg.cond(np.corrcoef(values[group : group + 2]))) for group in (0, 2, 4, 6)]
    # eps of 1e-5 against variances near 1 shifts eigenvalues by 1e-5.
    assert found == pytest.approx(np.exp(np.mean(logs)), rel=1e-2)
    assert probes.of_statistics(convnet("iter_norm"), IMAGES)["condition"] < found
    assert "condition" not in probes.of_statistics(convnet("evo_norm_s0"), IMAGES)


def test_the_share_of_the_batch_is_that_of_the_softmax() -> None:
    model = convnet("switchable_norm")
    assert probes.of_statistics(model, IMAGES)["batch_share"] == pytest.approx(1 / 3)
    for norm in (model[1], model[4]):
        norm.mean_weight.data = torch.tensor([0.2, 0.3, 0.5]).log()
        norm.var_weight.data = torch.tensor([0.6, 0.3, 0.1]).log()
    found = probes.of_statistics(model, IMAGES)
    assert found["batch_share"] == pytest.approx(0.3)
    assert found["batch_dependence"] > 0.01
    assert probes.of_statistics(convnet("filter_response_norm"), IMAGES)["batch_dependence"] < 1e-5


def test_the_distance_of_channels_is_half_of_one_minus_the_cosine() -> None:
    first, second, dead = torch.tensor([1.0, 0, 0, 2]), torch.tensor([0.0, 3, 1, 0]), torch.full((4,), -1.0)

    def distance(*maps: torch.Tensor) -> float:
        return probes.channel_distance(nn.Sequential(nn.ReLU()), torch.stack(maps).view(1, -1, 2, 2))[
            "channel_distance"
        ]

    assert distance(first, 5 * first) == pytest.approx(0.0)
    assert distance(first, second) == pytest.approx(0.5)
    assert distance(first, second, first) == pytest.approx((0.5 + 0 + 0.5) / 3)
    assert distance(first, second, dead) == pytest.approx(0.5)
    # cos 45 degrees.
    assert distance(torch.tensor([1.0, 1, 0, 0]), torch.tensor([1.0, 0, 0, 0])) == pytest.approx((1 - 0.5**0.5) / 2)


def test_only_a_norm_without_statistics_keeps_features_apart() -> None:
    found = {
        method: probes.value_dependence(transformers.transformer(method, 0, width=8, depth=1, steps=5))[
            "value_dependence"
        ]
        for method in ("dynamic_tanh", "dynamic_erf", "layer_norm", "scale_norm")
    }
    assert found["dynamic_tanh"] == found["dynamic_erf"] == 0.0
    assert min(found["layer_norm"], found["scale_norm"]) > 0.1


def test_slopes_and_singular_values_are_those_of_the_product() -> None:
    one, two, head = nn.Linear(64, 12), nn.Linear(12, 9), nn.Linear(9, 3)
    found = probes.steepness(nn.Sequential(nn.Flatten(), one, two, head), IMAGES[:4])
    first, second = (layer.weight.detach().double().numpy() for layer in (one, two))
    assert found["singular_value"] == pytest.approx(max(np.linalg.svd(w)[1][0] for w in (first, second)), rel=1e-6)
    # In fp32: a product of two matrices.
    assert found["slope"] == pytest.approx(np.linalg.svd(second @ first)[1][0], rel=1e-5)
    bounded = networks.mlp("spectral_norm", 0, inputs=64, width=8, depth=2).eval()
    assert probes.steepness(bounded, IMAGES[:4])["singular_value"] == pytest.approx(1.0, abs=1e-4)
    assert probes.steepness(bounded, IMAGES[:4])["slope"] < 1.0001


def test_the_relative_error_is_a_share_of_the_variance() -> None:
    target = torch.tensor([[[1.0], [3.0]], [[5.0], [7.0]]])
    window = torch.zeros(2, 2, 1)
    expected = float(np.mean(np.square([1, 3, 5, 7])) / np.var([1, 3, 5, 7], ddof=1))
    assert probes.relative_error(nn.Identity(), window, target)["relative_error"] == pytest.approx(expected)


Of = Callable[[str, int], dict[str, object]]


def finding(experiment: Experiment, of: Of) -> str:
    """The finding of an experiment from made-up runs: `of(variant, batch size)` has the values, plus a little noise."""
    tables = {}
    for name in experiment.workloads:
        ours = [(variant, size) for workload, variant, size in experiment.cells if workload == name]
        plan = Design(tuple(dict.fromkeys(v for v, _ in ours)), tuple({size for _, size in ours}), 8, 3, 40)
        runs = {}
        noise = np.random.default_rng(0).uniform(1.0, 1.001, 100)
        for variant, size in ours:
            trial = Trial("tune", variant, size, plan.rates[1], plan.tuning_seeds[0])
            runs[trial] = Run(trial, "trained", validation_error=0.1)
            for seed, factor in zip(plan.evaluation_seeds, noise, strict=False):
                trial = Trial("measure", variant, size, plan.rates[1], seed)
                given = of(variant, size)
                own = {key: factor * value for key, value in given.pop("probes", {}).items()}  # type: ignore[attr-defined]
                direct = {key: factor * value for key, value in given.items()}  # type: ignore[operator]
                runs[trial] = Run(trial, "trained", probes=own, **direct)  # type: ignore[arg-type]
        tables[name] = cells.cells(plan, runs, {})
    (judgement,) = judging.judged([experiment], tables, 0.05)
    return judgement.finding


def probe(name: str, values: dict[str, float]) -> Of:
    return lambda variant, size: {"probes": {name: values[variant]}}


@pytest.mark.parametrize(
    ("experiment", "holds", "fails"),
    [
        (dyt_1.EXPERIMENTS[0], *(probe("value_dependence", {"dynamic_tanh": v, "layer_norm": 1.0}) for v in (0, 0.1))),
        (
            grn_1.EXPERIMENTS[0],
            *(probe("channel_distance", {"global_response_norm": v, "layer_norm2d": 0.2}) for v in (0.25, 0.15)),
        ),
        (
            iter_norm_1.EXPERIMENTS[0],
            *(probe("condition", {"batch_norm": 100.0, "iter_norm": v}) for v in (1.1, 90.0)),
        ),
        (iter_norm_1.EXPERIMENTS[1], *(probe("condition", {"batch_norm": 9.0, "iter_norm": v}) for v in (1.1, 9.0))),
        (revin_1.EXPERIMENTS[0], *(probe("relative_error", {"none": 1.0, "revin": v}) for v in (0.5, 0.98))),
        (sn_1.EXPERIMENTS[0], *(probe("singular_value", {"none": 3.0, "spectral_norm": v}) for v in (1.001, 1.2))),
        (sn_1.EXPERIMENTS[1], *(probe("slope", {"none": 9.0, "spectral_norm": v}) for v in (0.5, 8.0))),
        (
            power_norm_2.EXPERIMENTS[0],
            lambda variant, size: {"gap": {"power_norm": -0.01, "batch_norm": 0.5}[variant]},
            lambda variant, size: {"gap": {"power_norm": -0.3, "batch_norm": 0.5}[variant]},
        ),
        (
            power_norm_2.EXPERIMENTS[1],
            lambda variant, size: {"gap": {"power_norm": -0.01, "batch_norm": 0.5}[variant]},
            lambda variant, size: {"gap": {"power_norm": -0.6, "batch_norm": 0.5}[variant]},
        ),
        (
            switchable_norm_1.EXPERIMENTS[0],
            lambda variant, size: {"probes": {"batch_share": {2: 0.2, 16: 0.4}[size]}},
            lambda variant, size: {"probes": {"batch_share": {2: 0.4, 16: 0.3}[size]}},
        ),
        (
            evo_norm_s0_1.EXPERIMENTS[2],
            lambda variant, size: {"test_error": 0.5 if (variant, size) == ("batch_norm", 2) else 0.1},
            # Both rise by the same amount, from different errors.
            lambda variant, size: {"test_error": (0.2 if variant == "batch_norm" else 0.1) + (0.1 if size == 2 else 0)},
        ),
    ],
    ids=lambda value: f"{value.claim}, {value.name}" if isinstance(value, Experiment) else "",
)
def test_an_experiment_can_come_out_both_ways(experiment: Experiment, holds: Of, fails: Of) -> None:
    assert finding(experiment, holds) == "supported"
    assert finding(experiment, fails) == "contradicted"
