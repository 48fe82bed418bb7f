"""A pair folded for training gives what layer and norm give, and one plain layer at the end."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from pairs_of_layers import DOUBLE, models, rounded, trained
from torch import Tensor, nn

import normkit
import zoo
from normkit.errors import ArgumentError, DtypeError, ShapeError, StateError
from normkit.tools.fold_training import FoldedNorm

QUANTIZERS = {"none": None, "function": lambda weight: weight, "module": nn.Identity()}


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("index", range(len(models())))
def test_training_without_rounding_is_that_of_layer_and_norm(index: int, quantizer: str):
    """Three steps: the state after one decides the values of the next."""
    model, shape = models()[index]
    batches = list(torch.randn(3, 8, *shape, dtype=torch.float64))
    folded, report = normkit.fold_for_training(model, batches[0], weight_fake_quant=QUANTIZERS[quantizer])
    assert [str(pair) for pair in report.pairs] == ["1: folded into 0 while training"]
    assert folded.state_dict().keys() == model.state_dict().keys()
    assert report.graph
    for new, old in zip(trained(folded, batches), trained(model, batches), strict=True):
        torch.testing.assert_close(new, old, **DOUBLE)


class Oracle(nn.Module):
    """The definition, with the convolution of a batch normalized by its own mean and variance, of a rounded weight."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = copy.deepcopy(conv), copy.deepcopy(norm)

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        plain = conv(x)
        mean, var = plain.mean((0, 2, 3)), plain.var((0, 2, 3), correction=0)
        n = plain.numel() / plain.shape[1]
        with torch.no_grad():
            norm.running_mean.copy_(0.9 * norm.running_mean + 0.1 * mean)
            norm.running_var.copy_(0.9 * norm.running_var + 0.1 * var * n / (n - 1))
            norm.num_batches_tracked += 1
        long, short = (norm.running_var + norm.eps).sqrt(), (var + norm.eps).sqrt()
        weight = rounded(conv.weight * (norm.weight / long)[:, None, None, None])
        y = F.conv2d(x, weight) * (long / short)[:, None, None]
        return y + (norm.bias + norm.weight * (conv.bias - mean) / short)[:, None, None]


def test_live_statistics_are_those_of_the_batch():
    torch.manual_seed(1)
    conv, norm = nn.Conv2d(3, 5, 3).double(), nn.BatchNorm2d(5).double()
    nn.init.normal_(norm.weight)
    norm.weight.data[0] = 0.0  # its weight is rounded to 0, and its gradient is not 0
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64) + 0.5
    oracle = Oracle(conv, norm)
    model, _ = normkit.fold_for_training(nn.Sequential(conv, norm), x, weight_fake_quant=rounded, inplace=True)
    wave = torch.linspace(-3, 3, 4 * 5 * 16, dtype=torch.float64).sin().view(4, 5, 4, 4)
    for _ in range(2):
        for net in (model, oracle):
            net.zero_grad()
            (net(x) * wave).sum().backward()
        torch.testing.assert_close(model(x), oracle(x), **DOUBLE)
        expected = dict(oracle.named_parameters())
        for name, parameter in model.named_parameters():
            other = expected[name.replace("0.", "conv.").replace("1.", "norm.")]
            torch.testing.assert_close(parameter.grad, other.grad, **DOUBLE)
    for new, old in zip(model.buffers(), oracle.buffers(), strict=True):
        torch.testing.assert_close(new, old, **DOUBLE)
    assert bool(model[1].weight.grad[0])


@pytest.mark.parametrize("frozen", ["argument", "method", "mode", "freeze"])
def test_frozen_statistics_are_used_and_kept(frozen: str):
    model, shape = models()[8]  # a plain convolution of images
    x = torch.randn(8, *shape, dtype=torch.float64)
    trained(model, [x])
    if frozen == "freeze":
        normkit.freeze(model)
    before = copy.deepcopy(model.eval()[1])
    more = {"statistics": "frozen"} if frozen == "argument" else {}
    folded, _ = normkit.fold_for_training(model.train(), x, weight_fake_quant=rounded, **more)
    if frozen == "method":
        folded[0].freeze_statistics()
    elif frozen == "mode":
        folded[1].eval()
    y = folded(2 * x)
    y.sum().backward()
    assert folded[0].weight.grad is not None
    assert torch.equal(folded[1].running_mean, before.running_mean)
    assert torch.equal(folded[1].running_var, before.running_var)
    scale = before.weight / (before.running_var + before.eps).sqrt()
    plain = F.conv2d(2 * x, rounded(model[0].weight * scale[:, None, None, None]), padding=1)
    shift = before.bias + (model[0].bias - before.running_mean) * scale
    torch.testing.assert_close(y, plain + shift[:, None, None], **DOUBLE)
    assert torch.equal(folded.eval()(2 * x), y)


@pytest.mark.parametrize("index", range(len(models())))
def test_the_plain_layer_gives_exactly_what_evaluation_gave(index: int):
    model, shape = models()[index]
    model = model.float()
    batches = list(torch.randn(2, 8, *shape))
    folded, _ = normkit.fold_for_training(model, batches[0], weight_fake_quant=rounded)
    trained(folded, batches)
    before = folded(batches[0])
    finished = normkit.finish(folded)
    assert [type(module) for module in finished] == [type(model[0]), nn.Identity]
    assert torch.equal(finished(batches[0]), before)
    assert torch.equal(finished[0].weight * 16, (finished[0].weight * 16).round())
    assert torch.equal(folded[0].fold().weight, finished[0].weight)
    assert not {"_pair", "weight_fake_quant"} & vars(finished[0]).keys()
    assert finished.state_dict().keys() == {"0.weight", "0.bias"}
    with pytest.raises(StateError, match="finish needs modules of fold_for_training or of convert"):
        normkit.finish(finished)


class Observed(nn.Module):
    """A quantizer with state, which changes in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.ones(()))

    def forward(self, weight: Tensor) -> Tensor:
        self.largest.copy_(0.9 * self.largest + 0.1 * weight.detach().abs().max())
        step = self.largest / 7
        return weight + ((weight / step).round() * step - weight).detach()


def test_state_dicts_load_both_ways():
    def made() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))

    plain, x = made(), torch.randn(4, 3, 8, 8)
    folded, _ = normkit.fold_for_training(made(), x, weight_fake_quant=Observed())
    assert folded[0].weight_fake_quant is not folded[3].weight_fake_quant
    folded(x)
    largest = folded[0].weight_fake_quant.largest.clone()
    assert largest != 1
    folded.load_state_dict(plain.state_dict())
    assert torch.equal(folded[0].weight, plain[0].weight)
    assert torch.equal(folded[0].weight_fake_quant.largest, largest)
    folded(x)
    again, _ = normkit.fold_for_training(made(), x, weight_fake_quant=Observed())
    again.load_state_dict(folded.state_dict())
    assert torch.equal(again.eval()(x), folded.eval()(x))
    result = plain.load_state_dict(folded.state_dict(), strict=False)
    assert not result.missing_keys
    assert result.unexpected_keys == ["0.weight_fake_quant.largest", "3.weight_fake_quant.largest"]


def test_folding_does_not_move_an_observer():
    folded, _ = normkit.fold_for_training(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.randn(5, 3), weight_fake_quant=Observed()
    )
    before = folded[0].weight_fake_quant.largest.clone()
    layer = folded[0].fold()
    assert torch.equal(folded[0].weight_fake_quant.largest, before)
    x = torch.randn(5, 3)
    assert torch.equal(layer(x), folded.eval()(x))


def test_fake_quantizers_of_torch():
    from torch.ao.quantization import FakeQuantize, MovingAveragePerChannelMinMaxObserver

    options = {"quant_min": -128, "quant_max": 127, "dtype": torch.qint8, "qscheme": torch.per_channel_symmetric}
    quantizer = FakeQuantize(MovingAveragePerChannelMinMaxObserver, ch_axis=0, **options)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    x = torch.randn(4, 3, 8, 8)
    folded, _ = normkit.fold_for_training(model, x, weight_fake_quant=quantizer)
    for _ in range(2):
        folded(x).sum().backward()
    folded.apply(torch.ao.quantization.disable_observer).eval()
    finished = normkit.finish(folded)
    assert torch.equal(finished(x), folded(x))
    scale, _ = folded[0].weight_fake_quant.calculate_qparams()
    integers = finished[0].weight / scale.view(-1, 1, 1, 1)
    torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-4)


def test_copies_keep_the_pair_together():
    """The module of the layer reads the parameters of that of the norm, in copies those of the copy."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    x = torch.randn(5, 3)
    folded, _ = normkit.fold_for_training(model, x, weight_fake_quant=rounded)
    for twin in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        assert twin[0].norm is twin[1] is not folded[1]
        twin(x)
        assert int(twin[1].num_batches_tracked) == 1
        assert int(folded[1].num_batches_tracked) == 0
    double = copy.deepcopy(folded).double()
    assert double(x.double()).dtype == torch.float64
    values = {name: torch.zeros_like(value) for name, value in folded.named_parameters()}
    y = torch.func.functional_call(folded.eval(), values, x)
    assert not y.any()


@pytest.mark.slow
def test_compiled_and_exported():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    x = torch.randn(4, 3, 6, 6)
    folded, _ = normkit.fold_for_training(model, x, weight_fake_quant=rounded)
    twin = copy.deepcopy(folded)
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), folded(x))
    torch.testing.assert_close(twin[1].running_var, folded[1].running_var)
    exported = torch.export.export(folded.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), folded(x))


def test_checkpointing_updates_the_statistics_once():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    folded, _ = normkit.fold_for_training(model, x, weight_fake_quant=rounded)
    twin = copy.deepcopy(folded)
    folded(x).square().sum().backward()
    torch.utils.checkpoint.checkpoint(twin, x, use_reentrant=False).square().sum().backward()
    for new, old in zip(twin.parameters(), folded.parameters(), strict=True):
        torch.testing.assert_close(new.grad, old.grad, **DOUBLE)
    assert int(twin[1].num_batches_tracked) == 1
    torch.testing.assert_close(twin[1].running_var, folded[1].running_var)


def test_activations_that_a_norm_brings_stay():
    norm = zoo._timm().layers.BatchNormAct2d(4, act_layer=nn.LeakyReLU)
    ours = normkit.BatchNorm2d(4, activation="relu")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 4, 1), ours)
    x = torch.randn(4, 3, 6, 6)
    folded, report = normkit.fold_for_training(model, x, weight_fake_quant=lambda weight: weight)
    assert len(report.pairs) == 2
    torch.testing.assert_close(folded(x), model(x))
    finished = normkit.finish(folded.eval())
    torch.testing.assert_close(finished(x), model.eval()(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype):
    """The scale is rounded once, with the weight."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(dtype)
    model[1].running_var.uniform_(0.5, 2)
    x = torch.randn(4, 3, 6, 6, dtype=dtype)
    folded, _ = normkit.fold_for_training(model, x, weight_fake_quant=rounded)
    y = folded(x)
    y.float().square().sum().backward()
    assert y.dtype == folded[0].weight.grad.dtype == dtype
    scale = (folded[1].running_var.double() + 1e-5).rsqrt()
    expected = (model[0].weight.double() * scale[:, None, None, None]).to(dtype)
    finished = normkit.finish(folded.eval())
    assert torch.equal(finished(x), folded(x))
    assert torch.equal(finished[0].weight, rounded(expected))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("resnet18", 20), ("mobilenetv3_small_050", 34)])
def test_models_of_timm(name: str, count: int):
    model = zoo._timm().create_model(name, pretrained=False, num_classes=10)
    x = torch.randn(4, 3, 64, 64)
    folded, report = normkit.fold_for_training(model, x, weight_fake_quant=rounded, strict=True)
    assert len(report.pairs) == count
    assert report.graph
    folded(x).sum().backward()
    assert all(parameter.grad is not None for parameter in folded.parameters())
    assert folded.state_dict().keys() == model.state_dict().keys()
    finished = normkit.finish(folded.eval())
    assert torch.equal(finished(x), folded(x))
    assert not any("running" in key for key in finished.state_dict())


class Net(nn.Module):
    """Layers that a function connects."""

    def __init__(self, way, **layers) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 3, 1)


def bn() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(3)


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


REFUSED = {
    "the output of 'conv' also goes to add": lambda: Net(lambda m, x: m.bn(y := m.conv(x)) + y, conv=conv(), bn=bn()),
    "the output of 'conv' also goes to mul": lambda: Net(
        lambda m, x: m.bn(y := m.conv(x)) + (2 * y if m.training else 0), conv=conv(), bn=bn()
    ),
    "does not come straight from one": lambda: Net(lambda m, x: m.bn(m.conv(x).relu()), conv=conv(), bn=bn()),
    "it has no running statistics": lambda: Net(
        lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=nn.BatchNorm2d(3, track_running_stats=False)
    ),
    "the weight of 'conv' is also read by sum": lambda: Net(
        lambda m, x: m.bn(m.conv(x)) + m.conv.weight.sum(), conv=conv(), bn=bn()
    ),
    "remove its parametrization first": lambda: Net(
        lambda m, x: m.bn(m.conv(x)), conv=nn.utils.parametrizations.weight_norm(conv()), bn=bn()
    ),
    "is a Doubled, whose forward is not that of Conv2d": lambda: Net(
        lambda m, x: m.bn(m.conv(x)), conv=Doubled(3, 3, 1), bn=bn()
    ),
    "the example does not reach it": lambda: Net(lambda m, x: m.conv(x), conv=conv(), bn=bn()),
    "it has hooks": lambda: Net(lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=hooked(bn())),
    "'conv' has hooks": lambda: Net(lambda m, x: m.bn(m.conv(x)), conv=hooked(conv()), bn=bn()),
    "it takes its statistics over several processes": lambda: Net(
        lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=nn.SyncBatchNorm(3)
    ),
    "in training a BatchRenorm2d normalizes by other values": lambda: Net(
        lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=normkit.BatchRenorm2d(3)
    ),
    "it is no batch norm but instance_norm": lambda: Net(
        lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=nn.InstanceNorm2d(3, track_running_stats=True)
    ),
    "normalizes another dimension": lambda: Net(lambda m, x: m.bn(m.fc(x)), fc=nn.Linear(5, 3), bn=nn.BatchNorm2d(3)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_refused(reason: str):
    model, x = REFUSED[reason](), torch.randn(2, 3, 5, 5)
    folded, report = normkit.fold_for_training(model, x)
    assert reason in report.refusals[0].reason
    assert not report.pairs
    assert type(folded.bn) is type(model.bn)
    with pytest.raises(StateError, match="strict=True allows no norm to stay, 1 do"):
        normkit.fold_for_training(model, x, strict=True, inplace=True)
    assert not any(isinstance(module, FoldedNorm) for module in model.modules())


def test_wrong_arguments():
    model, x = nn.Sequential(conv(), bn()), torch.randn(2, 3, 5, 5)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ArgumentError, match=r"statistics must be 'live' or 'frozen', got 'life': did you mean 'live'"):
        normkit.fold_for_training(model, x, statistics="life", inplace=True)
    with pytest.raises(DtypeError, match="weight_fake_quant must be callable with a weight, got int"):
        normkit.fold_for_training(model, x, weight_fake_quant=8, inplace=True)
    with pytest.raises(DtypeError, match=r"must return a weight of torch.float32, got torch.int8"):
        normkit.fold_for_training(model, x, weight_fake_quant=lambda w: w.to(torch.int8), inplace=True)
    with pytest.raises(ShapeError, match=r"weight of shape \(3, 3, 1, 1\), got \(27?9?,\)|got \(9,\)"):
        normkit.fold_for_training(model, x, weight_fake_quant=lambda w: w.flatten(), inplace=True)
    with pytest.raises(ArgumentError, match="where must name norms of the model"):
        normkit.fold_for_training(model, x, where="bn*", inplace=True)
    assert [type(module) for module in model] == [nn.Conv2d, nn.BatchNorm2d]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    mlp = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(ArgumentError, match=r"in training mode it raises .*: give an example of several samples"):
        normkit.fold_for_training(mlp, torch.randn(1, 3))
    assert len(normkit.fold_for_training(mlp.eval(), torch.randn(1, 3))[1].pairs) == 1
    fold, _ = normkit.fold_for_training(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.randn(2, 3))
    with pytest.raises(ShapeError, match=r"takes \(N, features\), got shape \(2, 5, 3\)"):
        fold.eval()(torch.randn(2, 5, 3))


def test_where_names_the_norms_to_fold():
    model = nn.Sequential(conv(), bn(), conv(), bn())
    folded, report = normkit.fold_for_training(model, torch.randn(2, 3, 5, 5), where="3")
    row = {"layer": "2", "norm": "3"}
    assert report.to_dict() == {"pairs": (row,), "refusals": (), "graph": True}
    assert type(folded[1]) is nn.BatchNorm2d
