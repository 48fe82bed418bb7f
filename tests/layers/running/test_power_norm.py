"""Power norm after its warm-up, where the contract cannot test it: its gradient is not that of its output."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import normkit
from normkit import functional
from normkit.errors import ArgumentError, StateError

SHAPE = (6, 4, 3)


class Paper:
    """Algorithm 2 of Shen et al. 2020 for (N, C, L), step by step, in float64, with weight and bias constant."""

    def __init__(self, weight: Tensor, bias: Tensor, alpha: float, eps: float) -> None:
        self.weight, self.bias, self.alpha, self.eps = weight[:, None], bias[:, None], alpha, eps
        self.phi, self.nu = torch.ones(len(weight), 1).double(), torch.zeros(len(weight), 1).double()

    def step(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        psi = (self.phi + self.eps).sqrt()
        x_hat, g = x / psi, dy * self.weight
        y = x_hat * self.weight + self.bias
        gamma, lam = ((x_hat * t).mean((0, 2), keepdim=True)[0] for t in (x_hat, g))
        dx = (g - self.nu * x_hat) / psi
        self.phi = self.alpha * self.phi + (1 - self.alpha) * x.square().mean((0, 2), keepdim=True)[0]
        self.nu = self.nu * (1 - (1 - self.alpha) * gamma) + (1 - self.alpha) * lam
        return y, dx


def batches(count: int, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return [(torch.randn(SHAPE, dtype=dtype) * (i + 1) + 0.5, torch.randn(SHAPE, dtype=dtype)) for i in range(count)]


def trained(layer: normkit.PowerNorm, steps: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    out = []
    for x, dy in steps:
        x = x.clone().requires_grad_()
        y = layer(x)
        y.backward(dy)
        assert x.grad is not None
        out.append((y.detach(), x.grad))
    return out


@pytest.mark.parametrize("affine", [True, False])
def test_it_is_the_algorithm_of_the_paper(affine: bool):
    layer = normkit.PowerNorm(4, warmup_iters=0, affine=affine, dtype=torch.float64)
    weight, bias = torch.ones(4).double(), torch.zeros(4).double()
    if affine:
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([0.5, 1.0, 2.0, -1.5]))
            layer.bias.copy_(torch.tensor([0.0, 0.3, -0.2, 1.0]))
        weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    paper, steps = Paper(weight, bias, alpha=0.9, eps=1e-5), batches(5)
    for (y, dx), (x, dy) in zip(trained(layer, steps), steps, strict=True):
        theirs, gradient = paper.step(x, dy)
        torch.testing.assert_close(y, theirs)
        torch.testing.assert_close(dx, gradient)
    torch.testing.assert_close(layer.running_phi, paper.phi[:, 0])
    torch.testing.assert_close(layer.running_gradient, paper.nu[:, 0])
    assert layer.running_gradient.abs().min() > 0
    x = steps[0][0]
    expected = x / (paper.phi + 1e-5).sqrt() * weight[:, None] + bias[:, None]
    torch.testing.assert_close(layer.eval()(x), expected)


def test_the_warm_up_ends_after_its_batches():
    layer, steps = normkit.PowerNorm(4, warmup_iters=2, dtype=torch.float64), batches(3)
    own = normkit.Norm("[b] c [...]", num_features=4, center=False, dtype=torch.float64)
    for (x, dy), (y, dx) in zip(steps[:2], trained(layer, steps[:2]), strict=True):
        leaf = x.clone().requires_grad_()
        expected = own(leaf)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(dx, torch.autograd.grad(expected, leaf, dy)[0])
    phi = layer.running_phi.clone()
    assert layer.running_gradient.abs().min() > 0
    ((y, _),) = trained(layer, steps[2:])
    torch.testing.assert_close(y, steps[2][0] / (phi[:, None] + 1e-5).sqrt())
    layer.reset_running_stats()
    assert (layer.running_phi.tolist(), layer.running_gradient.tolist()) == ([1] * 4, [0] * 4)
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("warmup", [0, 10])
def test_a_batch_that_is_not_finite_leaves_its_channel_as_it_was(warmup: int):
    layer = normkit.PowerNorm(4, warmup_iters=warmup)
    trained(layer, batches(2, torch.float32))
    before = copy.deepcopy(layer.state_dict())
    ((x, dy),) = batches(1, torch.float32)
    x[0, 1] = torch.nan
    trained(layer, [(x, dy)])
    for name in ("running_phi", "running_gradient"):
        assert ((layer.state_dict()[name] == before[name]).tolist()) == [False, True, False, False]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_updates_once_and_sees_the_same_state(reentrant: bool):
    """Over the end of the warm-up, too, where a second forward would divide by another statistic."""
    plain = normkit.PowerNorm(4, warmup_iters=2)
    twin = copy.deepcopy(plain)
    for x, dy in batches(4, torch.float32):
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        for y in (plain(leaves[0]), checkpoint(twin, leaves[1], use_reentrant=reentrant)):
            y.backward(dy)
        assert leaves[0].grad is not None
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=0, atol=0)
    for (name, mine), other in zip(plain.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0, msg=name)


# torch's compiler itself makes an object that it deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_layer_trains_as_it_does_in_eager():
    layer = normkit.PowerNorm(4, warmup_iters=1)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    steps = batches(2, torch.float32)
    for (y, dx), (z, dz) in zip(trained(layer, steps), trained(compiled, steps), strict=True):
        # Two orders of the same sums, of values around 1.
        torch.testing.assert_close((z, dz), (y, dx), rtol=1e-5, atol=1e-5)
    for mine, other in zip(twin.state_dict().values(), layer.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_padding_reaches_neither_output_nor_statistics():
    x, lengths = torch.randn(3, 4, 5), torch.tensor([5, 3, 2])
    filled = x.masked_fill(torch.arange(5) >= lengths[:, None, None], 1e6)
    layers = [normkit.PowerNorm(4, warmup_iters=0) for _ in range(2)]
    for layer, batch in zip(layers, (x, filled), strict=True):
        layer(batch, lengths=lengths).square().sum().backward()
    valid = torch.cat([one[:, :length] for one, length in zip(x, lengths, strict=True)], 1)
    torch.testing.assert_close(layers[0].running_phi, 0.9 + 0.1 * valid.square().mean(1))
    for mine, other in zip(layers[0].state_dict().values(), layers[1].state_dict().values(), strict=True):
        assert torch.equal(mine, other)


def test_errors_name_rule_value_and_remedy():
    with pytest.raises(ArgumentError, match="warmup_iters of PowerNorm must not be negative, got -1: 0 is no warm-up"):
        normkit.PowerNorm(4, warmup_iters=-1)
    with pytest.raises(ArgumentError, match="needs a running quadratic mean, got None: pass running_phi"):
        functional.power_norm(torch.ones(2, 4), None)  # type: ignore[arg-type]
    layer = normkit.PowerNorm(4)
    with pytest.raises(StateError, match=r"a transform of torch.func cannot, got a call under one: use eval\(\)"):
        torch.func.grad(lambda x: layer(x).sum())(torch.randn(SHAPE))
