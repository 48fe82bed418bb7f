"""Frozen norms that keep other statistics than batch norm's: they evaluate, update nothing, and can be let go."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

import normkit
from normkit.errors import ArgumentError
from normkit.tools.freeze import is_frozen

NORMS = {
    "switchable": lambda: normkit.SwitchableNorm(4),
    "iter": lambda: normkit.IterNorm(4, num_groups=2),
    "power": lambda: normkit.PowerNorm(4),
    "power, no warm-up": lambda: normkit.PowerNorm(4, warmup_iters=0, momentum=None),
    "evo": lambda: normkit.EvoNorm2dB0(4),
}


def batch() -> Tensor:
    return torch.randn(6, 4, 3, 3) * 3 + 1


def trained(kind: str) -> nn.Sequential:
    """A convolution and a norm whose statistics and parameters training has changed."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1), NORMS[kind](), nn.Dropout())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        model(batch()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def saved_and_loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_formula(norm: nn.Module, x: Tensor) -> Tensor:
    """What a norm does in evaluation, in float64."""
    state = {name: value.double() for name, value in norm.state_dict().items()}
    x, shape = x.double(), (-1, 1, 1)
    weight, bias = state["weight"].view(shape), state["bias"].view(shape)
    if isinstance(norm, normkit.PowerNorm):
        return x / (state["running_phi"].view(shape) + norm.eps).sqrt() * weight + bias
    if isinstance(norm, normkit.IterNorm):
        centred = (x - state["running_mean"].view(shape)).unflatten(1, (norm.num_groups, -1))
        return torch.einsum("gij,ngjhw->ngihw", state["running_whitening"], centred).flatten(1, 2) * weight + bias
    own = x.var((2, 3), correction=0, keepdim=True)
    if isinstance(norm, normkit.EvoNorm2dB0):
        line = state["v"].view(shape) * x + (own + norm.eps).sqrt()
        return x / torch.maximum(line, (state["running_var"].view(shape) + norm.eps).sqrt()) * weight + bias
    means = x.mean((2, 3), keepdim=True), x.mean((1, 2, 3), keepdim=True), state["running_mean"].view(shape)
    variances = own, x.var((1, 2, 3), correction=0, keepdim=True), state["running_var"].view(shape)
    mean, var = (
        sum(share * part for share, part in zip(state[name].softmax(0), parts, strict=True))
        for name, parts in (("mean_weight", means), ("var_weight", variances))
    )
    return (x - mean) / (var + norm.eps).sqrt() * weight + bias


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded])
@pytest.mark.parametrize("kind", NORMS)
def test_a_frozen_norm_uses_its_statistics_and_updates_none(kind, how):
    model = trained(kind)
    plain = type(model[1])
    report = normkit.freeze(model)
    assert report.norms == {"1": ("statistics", "affine")}
    model = how(model).train()
    before = copy.deepcopy(model[1].state_dict())
    x = batch().requires_grad_()
    y = model[1](x)
    # float32 of numbers near 1, of which the whitened ones are sums of two.
    torch.testing.assert_close(y.detach().double(), by_formula(model[1], x.detach()), rtol=1e-5, atol=1e-5)
    y.square().sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model[1].state_dict().items())
    assert [module.training for module in model] == [True, False, True]
    assert is_frozen(model[1])
    assert isinstance(model[1], plain)
    assert not any(p.requires_grad or p.grad is not None for p in model[1].parameters())

    assert normkit.unfreeze(model).norms == {"1": ("statistics", "affine")}
    assert type(model[1]) is plain
    assert model[1].training
    assert all(p.requires_grad for p in model[1].parameters())
    model(batch()).square().sum().backward()
    moved = [name for name in before if "running" in name or "tracked" in name]
    assert all(not torch.equal(model[1].state_dict()[name], before[name]) for name in moved)
    assert all(p.grad is not None for p in model[1].parameters())


@pytest.mark.parametrize("kind", NORMS)
def test_the_gradient_of_a_frozen_norm_is_that_of_evaluation(kind):
    model = trained(kind)
    x, other = (t.clone().requires_grad_() for t in [batch()] * 2)
    copy.deepcopy(model[1]).eval()(x).square().sum().backward()
    normkit.freeze(model)
    model.train()[1](other).square().sum().backward()
    assert torch.equal(other.grad, x.grad)


@pytest.mark.parametrize("kind", NORMS)
def test_an_optimizer_moves_no_frozen_parameter(kind):
    model = trained(kind)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.1)
    normkit.freeze(model)
    before = copy.deepcopy(model.state_dict())
    model(batch()).square().mean().backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("1."), name


@pytest.mark.parametrize("kind", NORMS)
def test_parts_state_dicts_and_resets(kind):
    model = trained(kind)
    normkit.freeze(model, affine=False)
    assert all(p.requires_grad for p in model.parameters())
    before = copy.deepcopy(model[1].state_dict())
    model[1].reset_running_stats()
    assert all(torch.equal(value, before[name]) for name, value in model[1].state_dict().items())
    state, fresh = model.state_dict(), nn.Sequential(nn.Conv2d(4, 4, 1), NORMS[kind](), nn.Dropout())
    fresh.load_state_dict(state)
    assert normkit.freeze(fresh, like=state).norms == {"1": ("statistics",)}
    assert is_frozen(fresh[1])
    model[1].reset_parameters()
    new = NORMS[kind]().state_dict()
    assert all(torch.equal(value, new[name]) for name, value in model[1].state_dict().items())


def test_recalibration_leaves_a_frozen_norm_alone():
    model = nn.Sequential(*(make() for make in NORMS.values()))
    normkit.freeze(model, where=["0", "1", "2", "3"])
    before = copy.deepcopy(model.state_dict())
    report = normkit.recalibrate(model, [batch()])
    assert [row.outcome for row in report.norms] == ["frozen"] * 4 + ["new"]
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["4.running_var"]


def test_statistics_of_another_kind_are_not_frozen_by_a_conversion():
    """They are as made: frozen, they would never become those of the data, not by `recalibrate` either."""
    model = nn.Sequential(nn.BatchNorm2d(4))
    normkit.freeze(model)
    converted, _ = normkit.convert(model, to="iter_norm")
    assert isinstance(converted[0], normkit.IterNorm)
    assert not is_frozen(converted[0])
    assert not converted[0].weight.requires_grad


def test_the_message_names_what_freeze_knows():
    constant = normkit.FrozenBatchNorm2d(4)  # it has statistics, which nothing updates
    with pytest.raises(ArgumentError, match="norms of torch or normkit that update running statistics, Sequential has"):
        normkit.freeze(nn.Sequential(nn.LayerNorm(4), constant))
