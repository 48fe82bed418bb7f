"""Methods with a formula of their own: padding, extremes, a new layer's state, and other things not in the contract."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import normkit
from normkit import functional as f
from normkit.errors import ArgumentError, DtypeError, ShapeError

ONE = torch.tensor([0.7], dtype=torch.float64)
CALLS: dict[str, Callable[..., Tensor]] = {
    "GRN": lambda x, **k: f.global_response_norm(x, **k),
    "B0": lambda x, **k: f.evo_norm_b0(x, None, training=True, **k),
    "S0": lambda x, **k: f.evo_norm_s0(x, 1, **k),
    "DyT": lambda x, **k: f.dynamic_tanh(x, ONE, channels_last=False, **k),
    "Derf": lambda x, **k: f.dynamic_erf(x, ONE, ONE, channels_last=False, **k),
}


@pytest.mark.parametrize("name", CALLS)
def test_padding_counts_for_nothing(name: str):
    """A sample cut to its length gives the same; padding is 0 and has no gradient, even where it is not finite."""
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    x[:, :, 3:] = torch.nan
    x[0, 0, 4] = torch.inf
    x.requires_grad_()
    y = CALLS[name](x, lengths=[3, 3])
    torch.testing.assert_close(y[:, :, :3], CALLS[name](x[:, :, :3]))
    assert not y[:, :, 3:].any()
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    (cut,) = torch.autograd.grad(CALLS[name](x[:, :, :3]).square().sum(), x)
    torch.testing.assert_close(dx[:, :, :3], cut[:, :, :3])
    assert not dx[:, :, 3:].any()


def test_padding_of_rows_and_of_unequal_lengths():
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    y = f.scale_norm(x.masked_fill(~mask[..., None], torch.nan), ONE, mask=mask)
    torch.testing.assert_close(y[mask], f.scale_norm(x, ONE)[mask])
    assert not y[~mask].any()
    leaf = x.mT.contiguous().requires_grad_()
    for call in (CALLS["GRN"], CALLS["B0"], CALLS["S0"]):
        assert gradcheck(lambda x, call=call: call(x, lengths=[2, 4]), (leaf,))
    # The second sample has as many values in each channel as it would have alone.
    torch.testing.assert_close(CALLS["GRN"](x.mT, lengths=[2, 4])[1], CALLS["GRN"](x.mT)[1])


@pytest.mark.parametrize("name", CALLS)
def test_a_residual_is_added_first_and_an_activation_comes_last(name: str):
    x, residual = torch.randn(2, 2, 3, 5, dtype=torch.float64)
    y, total = CALLS[name](x, residual=residual, return_residual=True, activation="tanh")
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(y, torch.tanh(CALLS[name](x + residual)))


def test_new_layers_have_the_state_of_their_papers():
    state = {name: value.flatten()[0].item() for name, value in normkit.EvoNorm2dB0(3).state_dict().items()}
    assert state == {"weight": 1, "bias": 0, "v": 1, "running_var": 1}
    assert [*normkit.EvoNorm2dS0(4, 2).state_dict()] == ["weight", "bias", "v"]
    assert {name: set(t.tolist()) for name, t in normkit.DynamicErf(3).state_dict().items()} == {
        "alpha": {0.5},
        "weight": {1.0},
        "bias": {0.0},
        "shift": {0.0},
    }
    assert normkit.ScaleNorm(16).weight.tolist() == [4.0]
    assert not normkit.GlobalResponseNorm(3).weight.any()
    layer = normkit.DynamicTanh(3, alpha_init_value=0.8, elementwise_affine=False)
    assert [*layer.state_dict()] == ["alpha"]
    assert repr(layer) == (
        "DynamicTanh((3,), channels_last=True, alpha_init_value=0.8, elementwise_affine=False, bias=False)"
    )


def test_the_running_variance_follows_batch_norm():
    """The rules are batch norm's: unbiased, not from an empty batch, and old values where new ones are not finite."""
    ours, theirs = normkit.EvoNorm2dB0(3, momentum=0.3), torch.nn.BatchNorm2d(3, momentum=0.3)
    for _ in range(3):
        x = torch.randn(2, 3, 2, 4) * 2 + 5
        ours(x)
        theirs(x)
        torch.testing.assert_close(ours.running_var, theirs.running_var)
    before = ours.running_var.clone()
    ours(torch.randn(0, 3, 2, 4))
    x[0, 1, 0, 0] = torch.inf
    ours(x)
    assert ours.running_var[1] == before[1]
    assert (ours.running_var != before).tolist() == [True, False, True]
    with torch.no_grad():
        ours.eval()(x)
    assert ours.running_var[1] == before[1]


def test_a_checkpoint_updates_the_running_variance_once():
    x = torch.randn(2, 3, 2, 4, requires_grad=True)
    once, again = normkit.EvoNorm2dB0(3), normkit.EvoNorm2dB0(3)
    once(x).sum().backward()
    torch.utils.checkpoint.checkpoint(again, x, use_reentrant=False).sum().backward()
    assert torch.equal(once.running_var, again.running_var)


def test_silent_channels_have_finite_gradients():
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    x[:, 1] = 0
    x[:, 2] = 0.3
    weight = torch.ones(3, dtype=torch.float64)
    for call in (lambda x: f.global_response_norm(x, weight), lambda x: f.evo_norm_s0(x, 3), CALLS["B0"]):
        leaf = x.clone().requires_grad_()
        call(leaf).square().sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert torch.func.grad(lambda x, call=call: call(x).square().sum())(x).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_short_rows_are_divided_by_eps(dtype: torch.dtype):
    x = torch.tensor([[3.0, 4.0], [3e-6, 4e-6], [0.0, 0.0], [3e5, 4e5]], dtype=torch.float64)
    length = x.norm(dim=1, keepdim=True).clamp(min=1e-2)
    y = f.scale_norm(x.to(dtype), ONE.to(dtype), eps=1e-2)
    unit = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), ONE * x / length, rtol=2 * unit, atol=unit)
    if dtype is torch.float64:
        assert gradcheck(
            lambda x, g: f.scale_norm(x, g, 1e-2), (x[:3].clone().requires_grad_(), ONE.clone().requires_grad_())
        )


def test_short_rows_under_vmap():
    x, layer = torch.randn(4, 3, 5), normkit.ScaleNorm(5)
    x[1, 2] = 0
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))


@pytest.mark.slow
def test_short_rows_in_a_graph():
    x, layer = torch.randn(4, 3, 5), normkit.ScaleNorm(5)
    x[1, 2] = 0
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x), rtol=0, atol=0)


def test_errors_name_rule_value_and_remedy():
    x = torch.randn(2, 6, 4)
    for call, error, says in (
        (
            lambda: normkit.EvoNorm2dS0(6, 4),
            ArgumentError,
            "num_groups of EvoNorm2dS0 must divide num_channels, got 4 ",
        ),
        (lambda: f.evo_norm_s0(x, 4), ArgumentError, "num_groups of evo_norm_s0 must divide .* got 4 groups for 6"),
        (lambda: f.evo_norm_s0(x[..., :1], 6), ShapeError, "evo_norm_s0 with 6 groups gives each group one value"),
        (lambda: f.evo_norm_b0(x, None), ArgumentError, "evo_norm_b0 needs running_var outside training, got None"),
        (lambda: f.evo_norm_b0(x, torch.ones(5)), ShapeError, r"running_var of evo_norm_b0 must have shape \(6,\)"),
        (lambda: f.evo_norm_b0(x, torch.ones(6), torch.ones(5)), ShapeError, r"v of evo_norm_b0 must have shape"),
        (lambda: f.scale_norm(x, eps=0.0), ArgumentError, "eps of scale_norm must be above 0, got 0.0: use 1e-5"),
        (lambda: normkit.ScaleNorm(4, eps=0.0), ArgumentError, "eps of ScaleNorm must be above 0, got 0.0"),
        (lambda: f.scale_norm(x, torch.ones(4)), ShapeError, r"weight of scale_norm must have shape \(1,\)"),
        (lambda: f.dynamic_tanh(x, 0.5), DtypeError, "alpha of dynamic_tanh must be a tensor, got float: use"),
        (lambda: f.dynamic_erf(x, torch.ones(4)), ShapeError, r"alpha of dynamic_erf must have shape \(1,\)"),
        (lambda: normkit.DynamicTanh((2, 3), channels_last=False), ArgumentError, r"one number .*got \(2, 3\): give"),
        (lambda: f.global_response_norm(x[0]), ShapeError, "global_response_norm needs at least 3 dimensions"),
    ):
        with pytest.raises(error, match=says):
            call()
