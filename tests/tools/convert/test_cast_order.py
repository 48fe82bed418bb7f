"""A conversion in float32 keeps the order in which a norm rounds in half precision: models may be cast afterwards."""

import copy

import pytest
import torch
from newer_models import CONFIGS, IMAGES, OTHERS, FP32LayerNorm, RMSNorm, newer_model, norm_of
from torch import nn

import normkit
import zoo
from normkit.tools.model.recognise import describe, identity
from normkit.tools.model.tree import norms
from tools.subjects import randomised

HALF = (torch.bfloat16, torch.float16)
WIDE = (torch.float32, torch.float64)


def of_timm(name):
    return lambda: getattr(zoo._timm().layers, name)(32)


ORDERS = {
    "llama": (lambda: norm_of("llama", "LlamaRMSNorm", 32), "before"),
    "t5": (lambda: norm_of("t5", "T5LayerNorm", 32), "before"),
    "gemma": (lambda: norm_of("gemma", "GemmaRMSNorm", 32), "after"),
    "olmo2": (lambda: norm_of("olmo2", "Olmo2RMSNorm", 32), "after"),
    "cohere": (lambda: norm_of("cohere", "CohereLayerNorm", 32), "after"),
    "qwen3_next": (lambda: norm_of("qwen3_next", "Qwen3NextRMSNorm", 32), "after"),
    "qwen3_next, gate": (lambda: norm_of("qwen3_next", "Qwen3NextRMSNormGated", 32), "before"),
    "mamba2, gate": (lambda: norm_of("mamba2", "MambaRMSNormGated", 32, 16), "before"),
    "falcon_h1, gate": (lambda: norm_of("falcon_h1", "FalconH1RMSNormGated", 32), "after"),
    "diffusers": (lambda: RMSNorm(32, 1e-6), "before"),
    "diffusers, layer norm": (lambda: FP32LayerNorm(32), "after"),
    "timm RmsNorm": (of_timm("RmsNorm"), "after"),
    "timm RmsNormFp32": (of_timm("RmsNormFp32"), "after"),
    "timm LayerNorm": (of_timm("LayerNorm"), "after"),
    "torch RMSNorm": (lambda: nn.RMSNorm(32), "after"),
    "torch LayerNorm": (lambda: nn.LayerNorm(32), "after"),
}
"""Norms, and the order of casts of the layers that they become."""

QUICK = ("llama", "gemma", "olmo2", "mamba2, gate", "diffusers", "timm RmsNorm", "torch RMSNorm")


class InHalfNorm(nn.Module):
    """A layer norm as people write it, all of it in the dtype of its input."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.eps = 1e-6

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias


class WideNorm(nn.RMSNorm):
    """Not for half precision."""

    def forward(self, x):
        assert x.dtype.itemsize > 2, "float32 or float64 only"
        return super().forward(x)


class UncastNorm(nn.RMSNorm):
    """Cannot be cast: a child refuses."""

    def __init__(self):
        super().__init__(8)
        self.drop = UncastDropout()

    def forward(self, x):
        return self.drop(super().forward(x))


class UncastDropout(nn.Identity):
    """A child that knows float32 and float64 only."""

    def _apply(self, fn, recurse=True):
        if fn(torch.zeros(1)).dtype.itemsize == 2:
            raise TypeError("not in half precision")
        return super()._apply(fn, recurse)


def inputs_of(info, dtype):
    """x, and the gate if there is one, for a norm of that description."""
    shape = (64, *(info.shape or (32,)))
    x = torch.randn(shape).to(dtype)
    return (x,) if info.gate is None else (x, torch.randn(shape).to(dtype))


@torch.no_grad()
def share_of_other_bits(old, new, inputs):
    y, expected = new(*inputs), old(*inputs)
    assert y.dtype == expected.dtype
    return (y != expected).float().mean().item()


def equal_after_cast(norm):
    """Convert, cast, and compare with the norm cast alike."""
    info = describe(norm)
    for made_in in (torch.float32, torch.float16):
        norm = norm.to(made_in)
        new, report = normkit.convert(norm)
        assert not report.refusals
        assert all(change.note == "" for change in report.changes)
        for dtype in HALF:
            old, cast = copy.deepcopy(norm).to(dtype), copy.deepcopy(new).to(dtype)
            inputs = inputs_of(info, dtype)
            # The mean square's own rounding may turn a tie in one element of many; the other order turns a quarter.
            assert share_of_other_bits(old, cast, inputs) <= 0.002
    return new


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in ORDERS])
def test_a_norm_that_is_cast_after_its_conversion_rounds_as_before(name):
    torch.manual_seed(0)
    make, order = ORDERS[name]
    norm = make()
    for p in norm.parameters():
        nn.init.uniform_(p, 0.5, 1.5)
    assert getattr(equal_after_cast(norm), "cast", "after") == order


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Casting complex values to real")  # of Llama 4's positions
@pytest.mark.parametrize("name", [*zoo.TEXT, *CONFIGS, *IMAGES, *OTHERS])
def test_every_norm_of_a_model_rounds_as_before(name):
    torch.manual_seed(0)
    model = randomised(zoo.language_model(name)[0] if name in zoo.TEXT else newer_model(name)[0])
    known = {}
    for place, info in norms(model):
        if info.axis == "last" and info.kind != "global_response_norm":
            known[identity(place.module)] = place.module
    for norm in known.values():
        if type(norm).__name__ == "NemotronLayerNorm1P":  # adds 1 to its weight in half precision
            continue
        equal_after_cast(copy.deepcopy(norm))


def test_a_whole_model_is_cast_after_its_conversion():
    model, x = zoo.language_model("llama")
    new, _ = normkit.convert(randomised(model))
    model, new = model.bfloat16(), new.bfloat16()
    with torch.no_grad():
        assert torch.equal(model(x), new(x))


@pytest.mark.parametrize("name", ["llama", "mamba2, gate"])
def test_a_half_precision_model_that_becomes_wide_has_the_bits_of_the_other_order(name):
    norm = ORDERS[name][0]()
    wide = normkit.convert(norm.bfloat16())[0].float()
    other = copy.deepcopy(wide)
    other.cast = "after"
    results = []
    for layer in (wide, other):
        torch.manual_seed(0)
        inputs = [t.requires_grad_() for t in inputs_of(describe(wide), torch.float32)]
        y = layer(*inputs)
        results.append([y, *torch.autograd.grad(y.sin().sum(), [*inputs, layer.weight])])
    assert (wide.cast, other.cast) == ("before", "after")
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_norm_that_rounds_in_an_order_of_its_own_has_a_note():
    note = "in half precision the old norm rounds elsewhere, so that outputs differ by rounding"
    # The second adds 1 to its weight in half precision. The third rounds before the weight, and `normkit.Norm`, which
    # has a bias, does not.
    nemotron = norm_of("nemotron", "NemotronLayerNorm1P", 32)
    for norm, own_way in ((InHalfNorm(), True), (nemotron, True), (RMSNorm(8, 1e-6, bias=True), False)):
        assert describe(norm).rounds_its_own_way == own_way
        assert [change.note for change in normkit.convert(norm)[1].changes] == [note]


@pytest.mark.parametrize("norm", [WideNorm(8), UncastNorm()], ids=["forward", "child"])
def test_a_norm_that_half_precision_does_not_suit_is_known_by_its_own(norm):
    info = describe(norm)
    assert (info.kind, info.rounds_twice, info.rounds_its_own_way) == ("rms_norm", False, False)
    new, report = normkit.convert(norm)
    assert report.changes[0].note == ""
    x = torch.randn(4, 8)
    torch.testing.assert_close(new(x), norm(x))


@pytest.mark.parametrize("dtype", [*WIDE, *HALF])
def test_normkits_layers_are_described_alike_in_every_dtype(dtype):
    assert describe(normkit.RMSNorm(4, cast="before", dtype=dtype)).rounds_twice
    assert not describe(normkit.RMSNorm(4, dtype=dtype)).rounds_twice


def test_another_method_keeps_the_order():
    with_bias, _ = normkit.convert(normkit.LayerNorm(8, cast="before"), to="rms_norm")
    assert isinstance(with_bias, normkit.Norm)
    assert not describe(with_bias).rounds_twice  # `Norm` has one order only
    norm = normkit.LayerNorm(8, cast="before", bias=False)
    assert normkit.convert(norm, to="rms_norm")[0].cast == "before"
    stream = nn.Sequential(nn.Linear(8, 8), norm, nn.Linear(8, 3))
    centred, _ = normkit.to_rms_norm(stream, torch.randn(2, 5, 8))
    assert isinstance(centred[1], normkit.RMSNorm)
    assert centred[1].cast == "before"


def test_fold_and_audit_read_a_converted_norm_as_the_original():
    torch.manual_seed(0)
    norm = norm_of("llama", "LlamaRMSNorm", 8)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    model, x = nn.Sequential(nn.Linear(8, 8), norm, nn.Linear(8, 3)).eval(), torch.randn(4, 5, 8)
    new, _ = normkit.convert(model)
    folded, report = normkit.fold(new, x)
    expected, original = normkit.fold(model, x)
    assert len(report.folds) == len(original.folds) == 1
    # Both fold the same weight into the same layer in float64, and round once.
    assert torch.equal(folded[2].weight, expected[2].weight)
    found, before = (normkit.audit(each, x) for each in (new, model))
    assert [f.rule for f in found.findings] == [f.rule for f in before.findings]
