"""What `audit` must call a fault and what it must not: held against gradients, chance and accuracy."""

import copy
import json
import math

import pytest
import torch
from scipy import stats
from torch import nn

import normkit
import zoo
from normkit.tools.audit.examples import images, settled
from normkit.tools.audit.measure.moments import chance_of_means, distance, is_noise, moments, student_tail


def found(code, model, *given, **more):
    """Severity and place of each finding of one rule."""
    return [(f.severity, f.module) for f in normkit.audit(model, *given, **more).findings if f.code == code]


@pytest.mark.parametrize("training", [False, True])
def test_what_freeze_holds_is_neither_noisy_nor_unsynchronized_nor_mixing(training):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)).train()
    given = (images(4, 3, 8, 8), None, None, 8, 2, 4)
    assert {"NK201", "NK403", "NK404"} <= normkit.audit(model.train(training), *given, per_sample=True).codes
    normkit.freeze(model)
    assert not normkit.audit(model.train(training), *given, per_sample=True).codes & {"NK201", "NK403", "NK404"}
    normkit.unfreeze(model)
    assert model[1].training is training
    assert {"NK201", "NK403", "NK404"} <= normkit.audit(model, *given, per_sample=True).codes


def test_norms_without_running_statistics_mix_samples_in_evaluation_too():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, track_running_stats=False)).train()
    model[1].eval()
    assert found("NK404", model, per_sample=True) == [("info", "1")]


def test_frozen_parameters_are_not_decayed():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    assert found("NK401", model, optimizer=optimizer)
    normkit.freeze(model)
    assert not found("NK401", model, optimizer=optimizer)


def test_our_synchronized_norm_counts_the_samples_of_all_ranks():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), normkit.SyncBatchNorm(3))
    x = images(4, 3, 8, 8)
    assert not normkit.audit(model, x, batch_size=64, world_size=8).codes & {"NK201", "NK403"}
    (finding,) = (f for f in normkit.audit(model, x, batch_size=8, world_size=8).findings if f.code == "NK201")
    assert finding.measured["elements"] == 8


class Halves(nn.Module):
    """One norm for the first and the second half of a batch."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x):
        return torch.cat([self.norm(part) for part in x.chunk(2)])


def halves(samples, seed, shift=0.0):
    """Images whose positions and channels go together, so that a sample is worth little more than one value."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * samples, 1, 1, 1, generator=draw) + torch.randn(2 * samples, 16, 1, 1, generator=draw)
    x = x + 0.3 * torch.randn(2 * samples, 16, 4, 4, generator=draw)
    x[samples:] += shift
    return x


@pytest.mark.parametrize("samples", [1, 3, 32, *[pytest.param(n, marks=pytest.mark.slow) for n in (2, 8)]])
def test_halves_of_one_distribution_are_not_called_two_domains(samples):
    alarms = sum(found("NK107", Halves(), halves(samples, seed)) == [("warning", "norm")] for seed in range(200))
    # At most 1 in 100 is promised; 8 or more of 200 have a probability below 0.1 % then.
    assert alarms < 8


@pytest.mark.parametrize("samples", [4, 8, 32])
def test_halves_of_two_distributions_are_called_two_domains(samples):
    # Twelve standard deviations of a sample's mean.
    assert found("NK107", Halves(), halves(samples, 0, shift=17.0)) == [("warning", "norm")]


def test_frames_folded_into_the_batch_are_no_further_samples():
    class Clips(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(8)

        def forward(self, clips):
            return self.norm(clips[:, 0].flatten(0, 1)) + self.norm(clips[:, 1].flatten(0, 1))

    def clips(seed):
        draw = torch.Generator().manual_seed(seed)
        return torch.randn(2, 2, 1, 8, generator=draw) + 0.1 * torch.randn(2, 2, 30, 8, generator=draw)

    assert sum(found("NK107", Clips(), clips(seed)) == [("warning", "norm")] for seed in range(100)) < 6


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 63, 510])
@pytest.mark.parametrize("t", [0.0, 0.5, 2.0, 8.0, 50.0])
def test_the_tail_of_students_t(t, freedom):
    # A sum of at most 510 terms below 1.
    assert student_tail(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), abs=1e-12)


def test_distance_is_the_two_sample_test_of_the_means_of_samples():
    x, y = torch.randn(5, 3, 7, dtype=torch.float64), torch.randn(9, 3, 7, dtype=torch.float64) + 0.4
    expected = stats.ttest_ind(x.mean(2), y.mean(2)).pvalue
    _, chance = distance(moments(x), moments(y), 100)
    assert chance == pytest.approx(min(1, 2 * sorted(expected)[1]), rel=1e-9)


def trained_net():
    """A small net on scikit-learn's digits, its averages of parameters, and what it gets right of the test images."""
    from benchmarks.audit_harm import accuracy, fit, net

    torch.manual_seed(0)
    model = net(nn.BatchNorm2d)
    # Pixels as they are, from 0 to 16: the norms have something to do.
    model.register_forward_pre_hook(lambda module, args: 6 * args[0] + 4.9)
    ema = copy.deepcopy(model)
    for _ in range(8):
        fit(model, steps=20)
        with torch.no_grad():
            for mean, new in zip(ema.parameters(), model.parameters(), strict=True):
                mean.lerp_(new, 0.5)
    return model, ema, accuracy


def test_an_average_of_parameters_alone_is_an_error():
    model, ema, accuracy = trained_net()
    assert accuracy(model) > 90
    assert accuracy(ema) < 60
    report = normkit.audit(ema)
    (finding,) = (f for f in report.findings if f.code == "NK301")
    assert (finding.severity, finding.measured) == ("error", {"layers": 2, "trained": 2})
    assert "weight and bias of 2 are trained" in finding.message
    assert report.exit_code("error") == 1
    ema[5].load_state_dict(model[5].state_dict())
    assert found("NK301", ema) == [("error", "1")]
    assert not found("NK301", model)


def test_a_state_dict_without_buffers_is_an_error():
    model, _, _ = trained_net()
    bare = copy.deepcopy(model)
    for norm in (bare[1], bare[5]):
        norm.running_mean.zero_()
        norm.running_var.fill_(1)
    # The batches may be counted or not: what was saved decides.
    assert found("NK301", bare) == [("error", "")]


@pytest.mark.parametrize(
    ("weight", "bias"), [((0.0, 0.0), 0.0), ((1.0, 0.0), 0.0), ((0.3, 0.0), 0.2), ((1.0, 0.02), 0.0), ((0.1, 0.1), 0.1)]
)
def test_a_new_model_is_a_remark_however_its_weights_begin(weight, bias):
    """Constants, DCGAN's normal weights, and RepVGG's normal weights and biases."""
    for seed in range(20):
        torch.manual_seed(seed)
        model = nn.Sequential(*(nn.BatchNorm2d(8 * (1 + index), affine=index < 5) for index in range(6)))
        for norm in model[:5]:
            nn.init.normal_(norm.weight, *weight)
            nn.init.normal_(norm.bias, 0.0, bias) if bias == 0.1 else nn.init.constant_(norm.bias, bias)
        report = normkit.audit(model)
        assert [(f.code, f.severity) for f in report.findings] == [("NK301", "info")]
        assert report.exit_code() == 0


def test_chance_of_means_of_two_groups_is_the_two_sample_test():
    a, b = torch.randn(8, dtype=torch.float64), torch.randn(13, dtype=torch.float64) + 0.5
    assert chance_of_means([a, b]) == pytest.approx(min(1, 2 * stats.ttest_ind(a, b).pvalue), rel=1e-9)


def test_a_negative_variance_is_damage_and_no_dead_channel():
    norm = nn.BatchNorm2d(8)
    norm.running_var[2] = -4e-6
    report = normkit.audit(nn.Sequential(norm))
    assert [(f.code, f.severity, f.measured["least"]) for f in report.findings] == [
        ("NK306", "warning", pytest.approx(-4e-6))
    ]
    assert norm.eval()(torch.randn(2, 8, 4, 4)).isfinite().all()
    norm.running_var[2] = -1e-3
    (finding,) = normkit.audit(nn.Sequential(norm)).findings
    assert (finding.code, finding.severity) == ("NK306", "error")
    assert "gives NaN" in finding.message
    assert not norm(torch.randn(2, 8, 4, 4))[:, 2].isfinite().all()
    assert "prune" not in finding.fix


def test_statistics_are_not_compared_with_random_numbers():
    model = settled(nn.Sequential(nn.BatchNorm2d(3)), 5 + 3 * images(8, 3, 8, 8)).eval()
    assert found("NK302", model, torch.randn(8, 3, 16, 16)) == [("info", "0")]
    assert found("NK302", model, torch.rand(8, 3, 16, 16)) == [("info", "0")]
    real = torch.randn(8, 3, 16, 16).cumsum(-1)
    assert not is_noise(real)
    assert found("NK302", model, real) == [("warning", "0")]
    # A loader is data, whatever it looks like.
    assert found("NK302", model, loader=[torch.randn(8, 3, 16, 16)]) == [("warning", "0")]


def test_few_samples_that_differ_are_not_held_against_the_statistics():
    """Each sample has a brightness of its own: 8 samples of 256 positions are 8 values."""

    def batch(count, seed):
        draw = torch.Generator().manual_seed(seed)
        return 4 * torch.randn(count, 1, 1, 1, generator=draw) + torch.randn(count, 3, 16, 16, generator=draw)

    model = nn.Sequential(nn.BatchNorm2d(3, momentum=None))
    for seed in range(50):
        model(batch(64, seed))
    assert not any(found("NK302", model, batch(8, seed)) for seed in range(100, 150))
    assert found("NK302", model, batch(64, 0) + 20) == [("warning", "0")]


def test_statistics_of_a_recalibration_are_settled():
    batches = [torch.randn(16, 3) * 2 + 5 for _ in range(3)]
    model = nn.Sequential(nn.BatchNorm1d(3))
    normkit.recalibrate(model, batches)
    assert found("NK303", model) == [("warning", "0")]
    assert not found("NK303", model, loader=batches)
    assert found("NK303", model, loader=[batch + 20 for batch in batches])


def test_padding_that_a_mask_takes_out_is_no_finding():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = normkit.BatchNorm1d(8)

        def forward(self, x, mask=None):
            return self.norm(x, mask=mask)

    x, lengths = images(4, 8, 20), torch.tensor([20, 15, 10, 5])
    mask = torch.arange(20) < lengths[:, None]
    x = x * mask[:, None]
    assert found("NK405", Masked(), x) == [("warning", "norm")]
    assert not found("NK405", Masked(), (x, mask))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_on_meta_is_audited_as_far_as_it_goes_without_values(device):
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8, momentum=0.99))
    x = torch.zeros(4, 3, 8, 8, device=device)
    report = normkit.audit(model, x, batch_size=8, world_size=8)
    assert {(f.code, f.module) for f in report.findings} == {
        ("NK101", "0"), ("NK308", "3"), ("NK403", "1"), ("NK403", "3"),
    }  # fmt: skip
    assert {n.reason for n in report.not_run if n.code in ("NK107", "NK301", "NK306", "NK405")} == {
        "0.weight is on the meta device and has no values"
    }
    assert model[1].running_mean.is_meta
    assert "NK101" in {n.code for n in normkit.audit(model).not_run}


def test_a_language_model_on_meta_is_audited():
    with torch.device("meta"):
        model, tokens = zoo.language_model("llama")
    report = normkit.audit(model, tokens)
    assert report.norms == 5
    assert not report.findings


def test_a_report_is_json_whatever_was_measured():
    report = normkit.audit(nn.Sequential(nn.BatchNorm2d(3)), torch.full((4, 3, 8, 8), math.inf))
    (finding,) = (f for f in report.findings if f.code == "NK305")
    assert finding.measured["largest"] == math.inf

    def refuse(constant):
        raise AssertionError(constant)

    for text in (report.to_json(), json.dumps(report.to_sarif())):
        json.loads(text, parse_constant=refuse)
    kept = next(f for f in json.loads(report.to_json())["findings"] if f["code"] == "NK305")
    assert float(kept["measured"]["largest"]) == math.inf
