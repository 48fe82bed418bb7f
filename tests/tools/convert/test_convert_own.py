"""Norms of other libraries with a formula of their own become normkit's layers of the same method."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import normkit
import zoo
from normkit.errors import StateError
from normkit.tools.model.own import FilterResponseNormTlu2d
from normkit.tools.model.recognise import describe
from tools.subjects import Run, randomised

zoo._timm()

from timm.layers import evo_norm, filter_response_norm  # noqa: E402  # the zoo imports timm without its warnings
from timm.layers.grn import GlobalResponseNorm  # noqa: E402
from transformers.models.convnextv2.modeling_convnextv2 import ConvNextV2GRN  # noqa: E402

FIRST, LAST = (3, 6, 4, 5), (3, 4, 5, 6)
FOREIGN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], type[nn.Module], str]] = {
    "timm GRN": (lambda: GlobalResponseNorm(6), LAST, normkit.GlobalResponseNorm, "eps=1e-06, channels_last=True"),
    "timm GRN, channels first": (
        lambda: GlobalResponseNorm(6, eps=1e-3, channels_last=False),
        FIRST,
        normkit.GlobalResponseNorm,
        "eps=0.001, channels_last=False",
    ),
    "transformers GRN": (lambda: ConvNextV2GRN(6), LAST, normkit.GlobalResponseNorm, "eps=1e-06, channels_last=True"),
    "EvoNorm-B0": (
        lambda: evo_norm.EvoNorm2dB0(6, momentum=0.2),
        FIRST,
        normkit.EvoNorm2dB0,
        "eps=0.001, momentum=0.2",
    ),
    "EvoNorm-S0": (lambda: evo_norm.EvoNorm2dS0(6, groups=3), FIRST, normkit.EvoNorm2dS0, "num_groups=3, eps=1e-05"),
    "EvoNorm-S0a": (lambda: evo_norm.EvoNorm2dS0a(6, group_size=3), FIRST, normkit.EvoNorm2dS0, "num_groups=2"),
    "FRN with a threshold": (
        lambda: filter_response_norm.FilterResponseNormTlu2d(6),
        FIRST,
        FilterResponseNormTlu2d,
        "eps=1e-05, affine=True, threshold=True",
    ),
    "FRN alone": (
        lambda: filter_response_norm.FilterResponseNormTlu2d(6, apply_act=False),
        FIRST,
        normkit.FilterResponseNorm2d,
        "threshold=False",
    ),
    "FRN and SiLU": (
        lambda: filter_response_norm.FilterResponseNormAct2d(6, act_layer=nn.SiLU),
        FIRST,
        normkit.FilterResponseNorm2d,
        "threshold=False, activation='silu'",
    ),
    "FRN and another activation": (
        lambda: filter_response_norm.FilterResponseNormAct2d(6, act_layer=nn.Hardswish),
        FIRST,
        normkit.FilterResponseNorm2d,
        "threshold=False",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_the_converted_layer_computes_the_same_and_keeps_the_state(name: str):
    make, shape, kind, words = FOREIGN[name]
    model = nn.Sequential(make())
    randomised(model)
    x = torch.randn(shape)
    converted, report = normkit.convert(model)
    assert not report.refusals
    assert isinstance(converted[0], kind)
    assert words in repr(converted[0])
    for training in (True, False):
        truth = Run.of(model, x, training=training, dtype=torch.float64)
        errors = Run.of(converted, x, training=training, dtype=torch.float64).errors(truth)
        # Float64 rounding, enlarged by the sums of a few dozen elements; timm computes some variances in float32.
        assert max(errors.values()) <= (1e-5 if name.startswith(("Evo", "FRN")) else 1e-12), errors
    assert list(converted.state_dict()) == list(model.state_dict())
    theirs = dict(model.named_parameters())
    same, _ = normkit.convert(model, inplace=True)
    assert all(theirs[key] is p for key, p in same.named_parameters())
    fresh = copy.deepcopy(model)
    fresh.load_state_dict(converted.state_dict(), strict=True)
    converted.load_state_dict(model.state_dict(), strict=True)
    again, second = normkit.convert(converted)
    assert (second.changes, second.refusals) == ((), ())
    assert isinstance(copy.deepcopy(again)[0], kind)
    assert type(report.revert(converted)[0]) is type(make())


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (evo_norm.EvoNorm2dB1(6), "EvoNorm2dB1 keeps running_var, which the tools do not know"),
        (evo_norm.EvoNorm2dB0(6, apply_act=False), "EvoNorm2dB0 keeps running_var"),
        (evo_norm.EvoNorm2dS1(6, groups=3), "EvoNorm2dS1 computes something that no method of normkit agrees with"),
    ],
)
def test_what_computes_otherwise_is_refused(module: nn.Module, reason: str):
    _, report = normkit.convert(nn.Sequential(module))
    assert reason in report.refusals[0].reason


def test_a_wrong_result_is_no_method():
    class HalfNorm(GlobalResponseNorm):
        def forward(self, x):
            return super().forward(x) * 1.001

    info = describe(HalfNorm(6))
    assert info is not None
    assert info.kind is None


def test_a_method_that_does_more_than_normalize_becomes_no_other():
    for module in (normkit.EvoNorm2dS0(6, 3), normkit.GlobalResponseNorm(6), normkit.FilterResponseNorm2d(6)):
        with pytest.raises(StateError, match="does more than normalize, which another method would not do"):
            normkit.convert(nn.Sequential(module), to="group_norm", strict=True)


def test_norms_become_bounded_functions_and_back():
    for norm, shape in ((nn.LayerNorm(6), (2, 3, 6)), (nn.RMSNorm(6), (2, 6)), (nn.BatchNorm2d(6), (2, 6, 3, 3))):
        model = nn.Sequential(norm)
        randomised(model)
        for method, kind in (("DyT", normkit.DynamicTanh), ("Derf", normkit.DynamicErf)):
            converted, report = normkit.convert(model, to=method)
            assert isinstance(converted[0], kind)
            assert converted[0].weight.equal(model[0].weight)
            assert (converted[0].bias is None) == (getattr(model[0], "bias", None) is None)
            x = torch.randn(shape)
            bounded = torch.tanh(x / 2) if method == "DyT" else torch.erf(x / 2)
            spread = [-1 if d == (1 if len(shape) == 4 else len(shape) - 1) else 1 for d in range(len(shape))]
            y = bounded * model[0].weight.reshape(spread)
            y = y if converted[0].bias is None else y + model[0].bias.reshape(spread)
            torch.testing.assert_close(converted(x), y)
            back, _ = normkit.convert(converted, to="layer_norm")
            assert back[0].weight.equal(model[0].weight)
            assert back[0].eps == 1e-5
            assert type(report.revert(converted)[0]) is type(norm)


def test_calibration_fits_a_bounded_function_to_the_norm():
    x = torch.randn(64, 6) * torch.linspace(0.5, 2, 6) + 1
    model = nn.Sequential(nn.BatchNorm1d(6))
    model.train()(x)
    converted, report = normkit.convert(model.eval(), to="DyT", calibrate=[x])
    z, y = torch.tanh(x * converted[0].alpha.detach()).double(), model(x).double()
    spread = (z - z.mean(0)).square().mean(0)
    weight = ((z - z.mean(0)) * (y - y.mean(0))).mean(0) / spread
    torch.testing.assert_close(converted[0].weight.double(), weight, rtol=1e-5, atol=1e-5)
    assert report.changes[0].residual is not None


def test_layer_norms_become_scale_norm():
    converted, _ = normkit.convert(nn.Sequential(nn.LayerNorm(9)), to="scale_norm", calibrate=[torch.randn(4, 9)])
    assert repr(converted[0]) == "ScaleNorm(9, eps=1e-05, elementwise_affine=True)"
    assert converted[0].weight.tolist() == [3.0]
    _, report = normkit.convert(nn.Sequential(nn.BatchNorm2d(9)), to="scale_norm")
    assert "normkit has scale_norm for the last dimension alone" in report.refusals[0].reason


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnetv2_50d_evos", "resnetv2_50d_frn"])
def test_a_model_of_timm_computes_the_same(name: str):
    model, x = zoo.image_model(name)
    randomised(model)
    converted, report = normkit.convert(model)
    assert len(report.changes) > 10
    assert not report.refusals
    # Float32: a rounding is enlarged by fifty layers; another formula would differ by 1e-1 and more.
    torch.testing.assert_close(converted(x), model(x), rtol=1e-3, atol=1e-3)
