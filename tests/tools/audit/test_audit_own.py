"""What `audit`, `watch` and `param_groups` say of the norms that keep other statistics than batch norm's."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import normkit
from normkit.tools.audit.measure import invariance

NORMS = {
    "switchable": lambda: normkit.SwitchableNorm(4),
    "iter": lambda: normkit.IterNorm(4, num_groups=2),
    "power": lambda: normkit.PowerNorm(4),
    "power, no warm-up": lambda: normkit.PowerNorm(4, warmup_iters=0),
    "evo": lambda: normkit.EvoNorm2dB0(4),
}


def model_of(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), NORMS[kind]())


def images() -> torch.Tensor:
    return torch.randn(6, 3, 7, 7) + 1


def codes(model: nn.Module, *given: object, **more: object) -> set[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {finding.code for finding in normkit.audit(model, *given, **more).findings}


@pytest.mark.parametrize("kind", NORMS)
def test_a_bias_is_redundant_where_its_gradient_is_zero(kind: str):
    model, x = model_of(kind).double(), images().double()
    probe = copy.deepcopy(model)
    (probe(x) * torch.randn(6, 4, 5, 5, dtype=torch.float64)).sum().backward()
    vanishes = bool((probe[0].bias.grad.abs() < 1e-9 * probe[0].weight.grad.abs().max()).all())
    assert ("NK101" in codes(model, x)) == vanishes == (kind == "iter")


def test_the_remedy_for_a_redundant_bias_keeps_the_evaluation_of_an_iterative_norm():
    model, x = model_of("iter"), images()
    for _ in range(3):
        model(x)
    expected = model.eval()(x)
    with torch.no_grad():
        model[1].running_mean -= model[0].bias
    model[0].bias = None
    # The bias is added to other sums: some roundings of numbers near 1.
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert "NK101" not in codes(model.train(), x)


@pytest.mark.parametrize("kind", NORMS)
def test_state_that_is_not_finite_is_named_and_recalibration_removes_it(kind: str):
    x = images()
    for name, _ in NORMS[kind]().named_buffers():
        if not name.startswith("running"):
            continue
        model = model_of(kind)
        model[1].get_buffer(name).fill_(torch.nan)
        (found,) = [f for f in normkit.audit(model, x).findings if f.code == "NK306"]
        assert (found.module, found.measured["tensor"]) == ("1", name)
        normkit.recalibrate(model, [x])
        assert "NK306" not in codes(model, x)
        assert model.eval()(x).isfinite().all()


@pytest.mark.parametrize(("kind", "name"), [("power", "running_phi"), ("evo", "running_var")])
def test_a_negative_mean_of_squares_is_named(kind: str, name: str):
    model = model_of(kind)
    model[1].get_buffer(name)[1] = -2.0
    (found,) = [f for f in normkit.audit(model).findings if f.code == "NK306"]
    assert found.message == f"{name} has 1 negative values, the least -2: evaluation gives NaN or infinity"


@pytest.mark.parametrize("kind", NORMS)
def test_none_uses_the_batch_in_evaluation(kind: str):
    model, x = model_of(kind), images()
    assert "NK408" not in codes(model, x)
    assert "NK404" in codes(model, x, per_sample=True)
    normkit.freeze(model)
    assert "NK404" not in codes(model, x, per_sample=True)


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_in_train_mode_among_frozen_parameters(kind: str):
    model = nn.Sequential(model_of(kind).requires_grad_(False), nn.Conv2d(4, 2, 1))
    assert "NK402" in codes(model)
    normkit.freeze(model[0])
    assert "NK402" not in codes(model)


@pytest.mark.parametrize("kind", NORMS)
def test_momentum_that_updates_nothing_or_everything(kind: str):
    model = model_of(kind)
    for momentum, code in ((0, "NK309"), (1.0, "NK311"), (0.99, "NK308")):
        model[1].momentum = momentum
        assert codes(model) & {"NK308", "NK309", "NK311"} == {code}


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches, and nothing compiled, which takes seconds."""
    monkeypatch.setattr(invariance, "SIZES", (2, 3, 7))
    monkeypatch.setattr(invariance, "_compiled", lambda *_: [])


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("kind", NORMS)
def test_dependence_on_the_batch(kind: str):
    """In training by definition, but for a power norm after its warm-up; in evaluation none does."""
    model, x = model_of(kind), images()

    def found(model: nn.Module):
        (layer,) = normkit.audit(model, x, invariance=True).invariance.layers
        return layer

    in_training = found(model.train())
    past = kind == "power, no warm-up"
    assert in_training.by_definition == ("" if past else "in training it uses the statistics of the batch")
    assert in_training.in_any_batch is past
    in_evaluation = found(model.eval())
    assert in_evaluation.by_definition == ""
    assert in_evaluation.in_any_batch is True
    normkit.freeze(model.train())
    assert found(model).in_any_batch is True


@pytest.mark.parametrize("kind", NORMS)
def test_all_its_parameters_are_exempt_from_decay(kind: str):
    model = model_of(kind)
    decayed, free = normkit.param_groups(model, weight_decay=0.1)
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight)]
    assert {id(p) for p in free["params"]} == {id(model[0].bias), *map(id, model[1].parameters())}


@pytest.mark.parametrize("kind", NORMS)
def test_what_is_watched(kind: str):
    model, x = model_of(kind), images()
    twin = copy.deepcopy(model).double()
    with normkit.watch(model) as watcher:
        model(x).sum().backward()
    (record,) = watcher.records
    values = twin[0](x.double()).detach().transpose(0, 1).flatten(1)
    assert (record.kind, record.channels) == (type(model[1]).__name__, 4)
    assert record.input_mean == pytest.approx(float(values.mean()), rel=1e-4)
    # Before the first batch the mean is 0 and the variance, or the mean of squares, 1.
    means, one = values.mean(1).abs(), 1 + model[1].eps
    squares = values.square().mean(1) if "power" in kind else values.var(1, correction=1)
    ratio = (squares + model[1].eps) / one
    if kind == "iter":
        assert (record.running_shift, record.running_var_ratio) == (None, None)
    else:
        assert record.running_var_ratio == pytest.approx(float(torch.maximum(ratio, 1 / ratio).max()), rel=1e-4)
    if kind == "switchable":
        assert record.running_shift == pytest.approx(float(means.max() / one**0.5), rel=1e-4)
    assert record.nonfinite_input == 0
