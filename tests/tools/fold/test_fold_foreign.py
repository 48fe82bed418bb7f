"""Folding where other code reads the norm, on weights that cannot be exchanged, and on norms of other libraries."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from test_fold import Net, bn, conv, drawn, image
from torch import Tensor, nn

import normkit
from normkit.errors import ArgumentError, StateError
from zoo import _torchvision, image_model


def reads(what) -> Net:
    return Net(lambda s, x: s.bn(s.conv(what(s, x))), conv=conv(), bn=bn())


READS = {
    "the dtype of its weight": (reads(lambda s, x: x.to(s.bn.weight.dtype)), "forward also reads its weight"),
    "its weight": (reads(lambda s, x: x * s.bn.weight.sum()), "forward also reads its weight"),
    "its eps": (reads(lambda s, x: x + s.bn.eps), "forward also reads its eps"),
    "its statistics": (reads(lambda s, x: x - s.bn.running_mean[:, None, None]), "forward also reads its running_mean"),
    "whether it has an attribute": (
        reads(lambda s, x: x if hasattr(s.bn, "num_features") else -x),
        "forward also reads its num_features",
    ),
    "on another way than that of the example": (
        Net(
            lambda s, x: s.bn(s.conv(x)) if type(x) is Tensor else s.bn(s.conv(x * s.bn.weight.sum())),
            conv=conv(),
            bn=bn(),
        ),
        "forward also reads its parameters",
    ),
    "the weight of the layer, on another way": (
        Net(
            lambda s, x: s.bn(s.conv(x)) if type(x) is Tensor else s.bn(s.conv(x * s.conv.weight.sum())),
            conv=conv(),
            bn=bn(),
        ),
        "the model's graph also reads the weight of 'conv'",
    ),
}


@pytest.mark.parametrize("case", READS)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_norm_that_forward_reads_stays(case, inplace):
    model, reason = READS[case]
    model = drawn(copy.deepcopy(model))
    kinds = [type(module) for module in model.modules()]
    x = image(2).float()
    expected = model(x)
    folded, report = normkit.fold(model, x, inplace=inplace)
    assert reason in str(report)
    assert not report.folds
    assert torch.equal(folded(x), expected)
    assert [type(module) for module in model.modules()] == kinds
    with pytest.raises(StateError, match=r"forward also reads its|graph also reads"):
        normkit.fold(model, x, strict=True)


def test_what_every_module_has_may_be_read_and_dtypes_of_layers_too():
    def way(self, x):
        assert not self.bn.training
        assert self.bn._forward_hooks is not None
        return self.bn(self.conv(x.to(self.conv.weight.dtype)))

    _, report = normkit.fold(drawn(Net(way, conv=conv(), bn=bn())), image(2).float(), strict=True)
    assert len(report.folds) == 1


def test_a_model_that_fails_without_its_norm_is_put_back():
    def way(self, x):
        assert isinstance(self.bn, nn.BatchNorm2d), "no norm"
        return self.bn(self.conv(x))

    model = drawn(Net(way, conv=conv(), bn=bn()))
    weight, norm = model.conv.weight, model.bn
    _, report = normkit.fold(model, image(2).float(), inplace=True)
    assert "folding was undone: the folded model raises AssertionError: no norm" in report.refusals[0].reason
    assert model.conv.weight is weight
    assert model.bn is norm


class Dequantized(nn.Conv2d):
    """A convolution that makes numbers of its quantized weight when it is called."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight.dequantize() if self.weight.is_quantized else self.weight.to(input.dtype)
        return F.conv2d(input, weight, self.bias, padding=1)


class Scaled(Tensor):
    """As libraries of quantization have it: a tensor of a class of its own, which looks like float32."""

    def __deepcopy__(self, memo: dict) -> Scaled:
        return self.clone()


def quantized(kind: str) -> nn.Module:
    layer = conv()
    layer.__class__ = Dequantized
    weight = layer.weight.detach()
    made = {
        "qint8": lambda: torch.quantize_per_tensor(weight, 0.01, 0, torch.qint8),
        "float8": lambda: weight.to(torch.float8_e4m3fn),
        "a subclass": lambda: weight.as_subclass(Scaled),
    }[kind]()
    layer.weight = nn.Parameter(made, requires_grad=False)
    return layer


@pytest.mark.filterwarnings("ignore:.*deprecated")  # torch says so of its own quantized tensors
@pytest.mark.parametrize(
    ("kind", "text"),
    [("qint8", "is torch.qint8"), ("float8", "is torch.float8_e4m3fn"), ("a subclass", "is a Scaled, whose values")],
)
def test_a_quantized_weight_stays(kind, text):
    model = drawn(nn.Sequential(quantized(kind), bn()))
    x = image(2).float()
    expected = model(x)
    folded, report = normkit.fold(model, x)
    assert f"the weight of '0' {text}" in str(report)
    assert torch.equal(folded(x), expected)
    assert folded[0].weight.dtype == model[0].weight.dtype


def test_a_model_quantized_by_torch_keeps_its_norms():
    model = drawn(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), conv()))[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao calls itself deprecated
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    x = torch.randn(5, 3)
    folded, report = normkit.fold(model, x)
    assert len(report.refusals) == 1
    assert torch.equal(folded(x), model(x))


class Standardized(nn.Conv2d):
    """A weight that is computed in forward: its scale is without effect."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight / self.weight.norm(), self.bias)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_example_that_hides_a_difference_is_not_believed(value):
    """On zeros both give the bias alone; on ones a sum of weights."""
    model = drawn(nn.Sequential(Standardized(4, 4, 1), bn()))
    _, report = normkit.fold(model, torch.full((2, 4, 3, 3), value))
    assert "computes more than its parameters say" in str(report)
    model = drawn(nn.Sequential(conv(), bn()))
    folded, report = normkit.fold(model, torch.full((2, 4, 3, 3), value), strict=True)
    x = image(2).float()
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("example", [torch.full((2, 4, 3, 3), torch.nan), torch.zeros(0, 4, 3, 3)])
def test_an_example_with_nothing_to_compare_is_refused(example):
    model = drawn(nn.Sequential(conv(), bn()))
    with pytest.raises(ArgumentError, match="got only nan, inf or empty ones from Sequential: give"):
        normkit.fold(model, example)


def test_a_norm_that_gets_nan_stays():
    model = drawn(Net(lambda s, x: (s.conv(x[:1]), s.bn(s.other(x[1:]))), conv=conv(), other=conv(), bn=bn()))
    x = image(2).float()
    x[1, 2] = torch.nan
    _, report = normkit.fold(model, x)
    assert "on the example it gives nan, inf or no values, which cannot be compared" in str(report)
    x[1, 2] = 0
    assert len(normkit.fold(model, x)[1].folds) == 1


def test_a_weight_that_leaves_its_dtype_stays():
    model = drawn(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))).half()
    # Representable: a standard deviation of 3e-3, which the weight is divided by.
    model[1].running_var.zero_()
    model[1].weight.data.fill_(1000.0)
    x = torch.randn(3, 4).half() * 1e-3
    _, report = normkit.fold(model, x)
    assert "the folded weight of '0' would not be finite in torch.float16" in str(report)


class WithoutEps(nn.Module):
    """DETR's frozen norm: its eps stands in forward."""

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True, square: bool = False) -> None:
        super().__init__()
        self.square, self.added = square, torch.tensor(eps)
        for name in ("weight", "bias") if affine else ():
            self.register_buffer(name, torch.rand(channels) + 0.5)
        self.register_buffer("running_mean", torch.randn(channels))
        self.register_buffer("running_var", torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.running_var + self.added).rsqrt()
        y = (x - self.running_mean[:, None, None]) * scale[:, None, None]
        if hasattr(self, "weight"):
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y.square() if self.square else y


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
@pytest.mark.parametrize("affine", [True, False])
def test_an_eps_that_stands_in_forward_is_found(eps, affine):
    model = nn.Sequential(conv(), WithoutEps(4, eps, affine)).double()
    x = image(2)
    folded, report = normkit.fold(model, x, strict=True)
    assert len(report.folds) == 1
    # A wrong eps would be off by 1e-6 and more.
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (WithoutEps(4, square=True), "computes more than its parameters say"),
        (WithoutEps(4, eps=0.0), "has running statistics, and computes something else than batch norm"),
    ],
)
def test_a_norm_that_is_not_understood_is_seen(norm, reason):
    model = nn.Sequential(conv(), norm).eval()
    _, report = normkit.fold(model, image(2).float())
    assert reason in str(report)
    with pytest.raises(StateError, match="strict=True allows no norm to stay, 1 do"):
        normkit.fold(model, image(2).float(), strict=True)


@torch.no_grad()
def test_frozen_norms_of_torchvision_and_transformers():
    _torchvision()
    from torchvision.ops import FrozenBatchNorm2d
    from transformers.models.detr.modeling_detr import DetrFrozenBatchNorm2d

    theirs = [FrozenBatchNorm2d(4), DetrFrozenBatchNorm2d(4), normkit.FrozenBatchNorm2d(4)]
    for norm in theirs:
        norm.running_var.uniform_(0.5, 2)
        norm.running_mean.normal_()
        norm.weight.uniform_(0.5, 2)
    model = nn.Sequential(*(layer for norm in theirs for layer in (conv(), norm, nn.ReLU()))).double()
    x = image(2)
    folded, report = normkit.fold(model, x, strict=True)
    assert [row.norm for row in report.folds] == [type(norm).__name__ for norm in theirs]
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


def test_a_feature_extractor_keeps_its_mode():
    _torchvision()
    from torchvision.models.feature_extraction import create_feature_extractor

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = conv(), bn()

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.bn(self.conv(x)), 0.5, self.training)

    model = nn.Sequential(nn.Sequential(Block()), nn.Dropout())
    extractor = drawn(create_feature_extractor(drawn(model), ["1"]))
    x = image(2).float()
    for mode in (False, True):
        normkit.freeze(extractor)
        folded, report = normkit.fold(extractor.train(mode), x)
        assert len(report.folds) == 1
        assert all(module.training == mode for module in folded.modules())
        assert all(module.training == mode for module in extractor.modules() if not isinstance(module, nn.BatchNorm2d))
        dropped = torch.equal(folded(x)["1"], folded(x)["1"])
        assert dropped != mode
        normkit.unfreeze(extractor)
        assert extractor.get_submodule("0.0.bn").training == mode


def test_a_norms_dropout_keeps_its_mode():
    image_model("resnet10t")  # makes timm importable
    from timm.layers.norm_act import FrozenBatchNormAct2d

    model = nn.Sequential(conv(), FrozenBatchNormAct2d(4, apply_act=False, drop_layer=nn.Dropout))
    folded, _ = normkit.fold(model, image(2).float(), strict=True)
    assert all(module.training for module in folded.modules())
    assert any(isinstance(module, nn.Dropout) for module in folded.modules())


def test_a_model_on_meta_is_refused():
    model = nn.Sequential(conv(), bn()).eval().to("meta")
    for x in (image(2).float(), image(2).float().to("meta")):
        with pytest.raises(
            StateError, match=r"fold needs tensors with values, '0\.weight' is on the meta device: load"
        ):
            normkit.fold(model, x)
