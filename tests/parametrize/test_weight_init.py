"""The data-dependent initialization of weight normalization: what it sets, what it leaves, what it reports."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from normkit.errors import ShapeError, StateError
from normkit.parametrize import init_weight_norm, weight_norm


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 4)


def parts(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Length and direction."""
    norms = module.parametrizations.weight
    return norms.original0, norms.original1


INITIALISED = {
    "linear": (lambda: nn.Linear(6, 5), 0, (64, 6)),
    "linear on sequences": (lambda: nn.Linear(6, 5), 0, (16, 4, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 5, 3), 0, (16, 6, 9)),
    "conv2d grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2), 0, (16, 6, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), 0, (8, 2, 4, 4, 4)),
    "conv2d unbatched": (lambda: nn.Conv2d(6, 4, 3), 0, (6, 12, 12)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(6, 5, 3), 1, (16, 6, 9)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(6, 5, 3), 1, (8, 6, 5, 5)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(2, 3, 2), 1, (8, 2, 4, 4, 4)),
}


def spread(y: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    values = y.detach().double().movedim(axis, 0).flatten(1)
    return values.mean(1), values.std(1, correction=0)


@pytest.mark.parametrize("case", list(INITIALISED))
def test_init_gives_every_channel_mean_0_and_deviation_1(case):
    make, dim, shape = INITIALISED[case]
    torch.manual_seed(0)
    layer = weight_norm(make(), dim=dim)
    with torch.no_grad():
        parts(layer)[0].mul_(-5)
    x = torch.randn(shape) + 1
    direction = parts(layer)[1].clone()
    report = init_weight_norm(layer, x)
    y = layer(x)
    axis = -1 if isinstance(layer, nn.Linear) else x.ndim - len(layer.kernel_size) - 1
    mean, std = spread(y, axis)
    # Sums of a few hundred fp32 products: far better than 1e-5, far worse results mean a wrong formula.
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)
    torch.testing.assert_close(std, torch.ones_like(std), rtol=0, atol=1e-5)
    assert torch.equal(parts(layer)[1], direction)
    assert (parts(layer)[0] > 0).all()
    (row,) = report.rows
    assert (row.channels, row.constant, row.bias, row.skipped) == (len(std), 0, True, "")


def deep() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        weight_norm(nn.Conv2d(3, 8, 3, padding=1)),
        nn.ReLU(inplace=True),
        weight_norm(nn.Conv2d(8, 4, 3, bias=False)),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.Flatten(),
        weight_norm(nn.Linear(4 * 36, 5)),
    )


def test_init_sets_all_layers_in_one_pass_and_nothing_else():
    model = deep().train()
    model[4].eval()
    modes = [module.training for module in model.modules()]
    batch = torch.randn(64, 3, 8, 8)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    seen: list[Tensor] = []
    handle = model[0].register_forward_hook(lambda module, inputs, y: seen.append(y.clone()))
    random = torch.get_rng_state()
    report = init_weight_norm(model, batch)
    handle.remove()
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert len(seen) == 1
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    model.eval()
    y = batch
    for index, layer in enumerate(model):
        y = layer(y.clone())
        if index == 0:
            # A hook of the user's sees what the layer will give from now on.
            torch.testing.assert_close(y, seen[0], rtol=0, atol=1e-5)
        if index in (0, 2, 6):
            mean, std = spread(y, 1)
            torch.testing.assert_close(std, torch.ones_like(std), rtol=0, atol=1e-5)
            if index != 2:
                torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)
    assert [(row.name, row.channels, row.bias) for row in report.rows] == [
        ("0", 8, True),
        ("2", 4, False),
        ("6", 5, True),
    ]
    assert "2: 4 channels; no bias, so the mean stays" in str(report)
    assert report.to_dict()["rows"][0] == {
        "name": "0",
        "channels": 8,
        "constant": 0,
        "bias": True,
        "skipped": "",
    }


def test_init_starts_from_the_direction_alone():
    """The paper's g and b do not depend on what they were; a length of 0 must not hide a layer."""
    batch = torch.randn(64, 5)
    one, other = weight_norm(linear()), weight_norm(linear())
    with torch.no_grad():
        parts(other)[0].zero_()
        other.bias.fill_(3)
    init_weight_norm(one, batch)
    init_weight_norm(other, batch)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_init_sets_a_shared_layer_by_its_first_use():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = weight_norm(nn.Linear(5, 5))
            self.alias = self.layer

        def forward(self, x: Tensor) -> Tensor:
            return self.alias(torch.relu(self.layer(x)))

    model, batch = Twice(), torch.randn(64, 5)
    report = init_weight_norm(model, batch)
    assert len(report.rows) == 1
    mean, std = spread(model.layer(batch), 1)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)
    torch.testing.assert_close(std, torch.ones_like(std), rtol=0, atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_init_leaves_constant_channels_alone(offset):
    torch.manual_seed(0)
    layer = weight_norm(linear())
    with torch.no_grad():
        parts(layer)[1][2] = torch.tensor([0.3, 0.7, 0.0, 0.0, 0.0])
    batch = torch.randn(64, 5)
    batch[:, :2] = offset
    g, bias = parts(layer)[0].clone(), layer.bias.detach().clone()
    report = init_weight_norm(layer, batch)
    assert (report.rows[0].channels, report.rows[0].constant) == (3, 1)
    assert "1 constant ones left alone" in str(report)
    assert torch.equal(parts(layer)[0][2], g[2])
    assert layer.bias[2] == bias[2]
    assert layer(batch).isfinite().all()


def test_init_of_a_single_sample_changes_nothing():
    layer = weight_norm(linear())
    before = copy.deepcopy(layer.state_dict())
    assert init_weight_norm(layer, torch.randn(1, 5)).rows[0].constant == 4
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_init_skips_with_a_reason():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input_wise = weight_norm(nn.ConvTranspose1d(3, 4, 2))
            self.whole = weight_norm(nn.Conv1d(4, 4, 1), dim=None)
            self.grouped = weight_norm(nn.ConvTranspose1d(4, 4, 1, groups=2), dim=1)
            self.recurrent = weight_norm(nn.GRU(4, 4), "weight_hh_l0")
            self.unused = weight_norm(nn.Linear(2, 2))

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.recurrent(self.grouped(self.whole(self.input_wise(x * scale))).transpose(1, 2))[0]

    model = Model()
    before = copy.deepcopy(model.state_dict())
    for batch in ((torch.randn(2, 3, 5), 2.0), {"x": torch.randn(2, 3, 5)}):
        reasons = {row.name: row.skipped for row in init_weight_norm(model, batch).rows}
        assert "dim 0 of the weight" in reasons["input_wise"]
        assert "dim=1" in reasons["input_wise"]
        assert "dim None" in reasons["whole"]
        assert "share one length" in reasons["grouped"]
        assert "only the weights of Linear" in reasons["recurrent"]
        assert "never reached" in reasons["unused"]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("batch", ["raises", "empty"])
def test_init_leaves_the_model_as_it_was_when_the_forward_raises(batch):
    model = deep().train()
    model[3].eval()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    if batch == "raises":
        with pytest.raises(RuntimeError, match="shapes"):
            init_weight_norm(model, torch.randn(4, 3, 9, 9))
    else:
        with pytest.raises(ShapeError, match="at least one sample"):
            init_weight_norm(model, torch.randn(0, 3, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_init_without_a_weight_norm_is_an_error():
    with pytest.raises(StateError, match="Linear has none: call weight_norm"):
        init_weight_norm(linear(), torch.randn(2, 5))


def test_init_of_lengths_that_half_precision_cannot_hold_changes_nothing():
    layer = weight_norm(linear().half())
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(StateError, match=r"lengths of '' must be finite as torch\.float16, .*: initialise"):
        init_weight_norm(layer, (torch.randn(64, 5) * 1e-6).half())
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    init_weight_norm(layer.bfloat16(), (torch.randn(64, 5) * 1e-6).bfloat16())
    assert all(value.isfinite().all() for value in layer.state_dict().values())


def test_init_on_meta_is_refused():
    with pytest.raises(StateError, match="init_weight_norm needs tensors with values, 'bias' is on the meta device"):
        init_weight_norm(weight_norm(linear().to("meta")), torch.randn(64, 5))
