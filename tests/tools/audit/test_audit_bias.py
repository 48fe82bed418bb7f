"""A bias is called redundant (NK101) exactly where its gradient is zero."""

import pytest
import torch
from torch import nn

import normkit


def flagged(model, x):
    """The layers whose bias the audit calls redundant."""
    return [f.module for f in normkit.audit(model, x).findings if f.code == "NK101"]


class Chain(nn.Module):
    """Modules and functions one after the other."""

    def __init__(self, *steps):
        super().__init__()
        self.steps = steps
        self.held = nn.ModuleList(step for step in steps if isinstance(step, nn.Module))

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


class DropPath(nn.Module):
    """Stochastic depth as everyone writes it."""

    def __init__(self, rate, inplace=False):
        super().__init__()
        self.rate, self.inplace = rate, inplace

    def forward(self, x):
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x.mul_(keep) if self.inplace else x * keep


class ReLUConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu()


class Twice(nn.Module):
    """One norm after each of two layers: in training each bias vanishes, in evaluation their difference does not."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.first(x)) * self.norm(self.second(x))


def evaluating(model):
    """A model in training whose norms are not."""
    for module in model.train().modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()
    return model


def frozen(model):
    normkit.freeze(model)
    return model


IMAGES, ROWS, SEQUENCES = (6, 3, 5, 5), (8, 8), (6, 8, 8)


def conv(*steps):
    return Chain(nn.Conv2d(3, 8, 3), *steps)


def tracking():
    return nn.InstanceNorm2d(8, track_running_stats=True)


def there_and_back(x):
    return x.permute(2, 0, 1).movedim(0, 2).reshape(-1, 8)


def linear(*steps):
    return Chain(nn.Linear(8, 8), *steps)


BIASED = {
    "conv": (lambda: conv(nn.BatchNorm2d(8)), IMAGES),
    "transposed conv": (lambda: Chain(nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8)), IMAGES),
    "conv1d": (lambda: Chain(nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8)), SEQUENCES),
    "linear": (lambda: linear(nn.BatchNorm1d(8)), ROWS),
    "instance": (lambda: conv(nn.InstanceNorm2d(8, affine=True)), IMAGES),
    "instance, no batch": (lambda: conv(nn.InstanceNorm2d(8)), IMAGES[1:]),
    "a group a channel": (lambda: conv(nn.GroupNorm(8, 8)), IMAGES),
    "turned": (lambda: linear(lambda x: x.transpose(1, 2), nn.BatchNorm1d(8)), SEQUENCES),
    "folded": (lambda: linear(lambda x: x.reshape(-1, 8), nn.BatchNorm1d(8)), SEQUENCES),
    "there and back": (
        lambda: linear(there_and_back, nn.BatchNorm1d(8)),
        SEQUENCES,
    ),
    "no drop": (lambda: conv(DropPath(0.0), nn.BatchNorm2d(8)), IMAGES),
    "dropout of 0": (lambda: conv(nn.Dropout(0.0), nn.BatchNorm2d(8)), IMAGES),
    "wrong axis": (lambda: linear(nn.BatchNorm1d(8)), SEQUENCES),
    "wrong axis, groups": (lambda: linear(nn.GroupNorm(8, 8)), SEQUENCES),
    "wrong axis, instance": (lambda: linear(nn.InstanceNorm1d(8)), SEQUENCES),
    "turned to the wrong axis": (lambda: Chain(nn.Conv1d(8, 8, 1), lambda x: x.mT, nn.BatchNorm1d(8)), SEQUENCES),
    "instance on rows": (lambda: linear(nn.InstanceNorm1d(8)), ROWS),
    "two channels a group": (lambda: conv(nn.GroupNorm(4, 8)), IMAGES),
    "two halves of a channel": (lambda: linear(lambda x: x.view(-1, 4), nn.BatchNorm1d(4)), ROWS),
    "drop path": (lambda: conv(DropPath(0.5), nn.BatchNorm2d(8)), IMAGES),
    "drop path in place": (lambda: conv(DropPath(0.5, inplace=True), nn.BatchNorm2d(8)), IMAGES),
    "dropout": (lambda: conv(nn.Dropout(0.5), nn.BatchNorm2d(8)), IMAGES),
    "relu in place": (lambda: conv(nn.ReLU(inplace=True), nn.BatchNorm2d(8)), IMAGES),
    "relu inside": (lambda: Chain(ReLUConv(3, 8, 3), nn.BatchNorm2d(8)), IMAGES),
    "norm in evaluation": (lambda: evaluating(conv(nn.BatchNorm2d(8))), IMAGES),
    "frozen": (lambda: frozen(conv(nn.BatchNorm2d(8))), IMAGES),
    "instance with statistics": (
        lambda: conv(tracking()),
        IMAGES,
    ),
    "instance in evaluation": (
        lambda: evaluating(conv(tracking())),
        IMAGES,
    ),
}


@pytest.mark.parametrize("name", BIASED)
def test_a_bias_is_redundant_where_its_gradient_is_zero(name):
    make, shape = BIASED[name]
    torch.manual_seed(0)
    model = make().double()
    x = torch.randn(shape, dtype=torch.float64)
    found = bool(flagged(model, x))
    y = model(x)
    (y * torch.randn_like(y)).sum().backward()
    layer = model.held[0]
    # Rounding of float64 is 1e-16; what is left of a gradient that does not vanish is some percent of the weight's.
    zero = bool(layer.bias.grad.abs().max() < 1e-10 * layer.weight.grad.abs().max())
    assert found == zero


def test_a_bias_is_not_redundant_where_someone_else_needs_it():
    assert not flagged(Twice(), torch.randn(IMAGES))
    model = conv(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
    model.held[2].bias = model.held[0].bias
    assert not flagged(model, torch.randn(IMAGES))

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(8, 8), normkit.BatchNorm1d(8)

        def forward(self, x):
            return self.norm(self.layer(x), residual=x)

    assert not flagged(Residual(), torch.randn(ROWS))


def test_trying_out_what_a_module_does_in_training_leaves_no_trace():
    class Counting(DropPath):
        calls = 0

        def forward(self, x):
            self.calls += self.training
            return super().forward(x)

    model = conv(Counting(0.5, inplace=True), nn.BatchNorm2d(8)).eval()
    x = torch.randn(IMAGES)
    before, chance = model(x), torch.get_rng_state()
    normkit.audit(model, x)
    assert model.held[1].calls == 0
    assert torch.equal(torch.get_rng_state(), chance)
    assert torch.equal(model(x), before)
