"""Weight and bias of layer, group, instance and root mean square norms go into the layers that read them."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from folded_models import DOUBLE, Net
from torch import Tensor, nn
from torch.nn import functional as F

import normkit
from normkit.errors import ArgumentError, StateError
from tools.subjects import randomised

AFFINE = ("weight", "bias")
PATHS = os.pathsep.join(sys.path)


def lively(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return randomised(model).double().eval()


def has_affine(norm: nn.Module) -> bool:
    return any(norm._parameters.get(name) is not None for name in AFFINE)


class Zero(nn.Module):
    """A norm of Gemma's kind: its weight is stored around 0."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(size)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        y = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return (y * (1 + self.weight.float())).type_as(x)


Zero.__name__ = "ZeroRMSNorm"

IMAGE, TOKENS = torch.randn(2, 4, 6, 5).double(), torch.randn(2, 7, 4).double()
PAIRS = {
    "layer norm": (nn.LayerNorm(4), nn.Linear(4, 3), TOKENS),
    "layer norm without bias": (nn.LayerNorm(4, bias=False), nn.Linear(4, 3, bias=False), TOKENS),
    "normkit's layer norm": (normkit.LayerNorm(4, cast="before", zero_centered=True), nn.Linear(4, 3), TOKENS),
    "rms norm": (nn.RMSNorm(4), nn.Linear(4, 3), TOKENS),
    "normkit's rms norm": (normkit.RMSNorm(4, 1e-3, zero_centered=True), nn.Linear(4, 3), TOKENS),
    "gemma's": (Zero(4), nn.Linear(4, 3, bias=False), TOKENS),
    "a new bias": (nn.LayerNorm(4), nn.Linear(4, 3, bias=False), TOKENS),
    "group norm": (nn.GroupNorm(2, 4), nn.Conv2d(4, 6, 3), IMAGE),
    "groups": (normkit.GroupNorm(2, 4), nn.Conv2d(4, 6, 3, groups=2), IMAGE),
    "instance norm": (nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 6, 3, groups=4 // 2), IMAGE),
    "one image": (nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 6, 3), IMAGE[0]),
    "layer norm of channels": (normkit.LayerNorm2d(4), nn.Conv2d(4, 6, (3, 1), bias=False), IMAGE),
    "circular padding": (nn.GroupNorm(2, 4), nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), IMAGE),
    "sequences": (nn.GroupNorm(2, 4), nn.Conv1d(4, 6, 2), IMAGE[..., 0]),
    "several dimensions": (nn.LayerNorm((7, 4)), nn.Sequential(nn.Flatten(), nn.Linear(28, 3)), TOKENS),
}


@pytest.mark.parametrize("case", PAIRS)
def test_weight_and_bias_go_into_the_layer_after_them(case):
    norm, layer, x = copy.deepcopy(PAIRS[case])
    model = lively(nn.Sequential(norm, layer))
    original = copy.deepcopy(model)
    folded, report = normkit.fold(model, x, strict=True)
    (row,) = report.folds
    assert (row.name, row.side) == ("0", "after")
    assert row.taken == tuple(name for name in AFFINE if norm._parameters.get(name) is not None)
    assert not has_affine(folded[0])
    assert getattr(folded[0], "eps", None) == norm.eps
    assert isinstance(folded[0], type(norm)) or case == "gemma's"
    assert [key for key in folded.state_dict() if key not in model.state_dict()] == [*row.new_keys]
    for key, value in model.state_dict().items():
        assert torch.equal(value, original.state_dict()[key])
    y = torch.randn_like(x) * 3 + 1
    # Gemma's computes in float32.
    near = {"rtol": 1e-6, "atol": 1e-6} if case == "gemma's" else DOUBLE
    torch.testing.assert_close(folded(y), model(y), **near)


def test_a_transposed_convolution_takes_a_weight_alone():
    model = lively(nn.Sequential(nn.GroupNorm(2, 4), nn.ConvTranspose2d(4, 6, 2, groups=2)))
    assert "spreads a shift of its input unevenly" in normkit.fold(model, IMAGE)[1].refusals[0].reason
    nn.init.zeros_(model[0].bias)
    folded, _ = normkit.fold(model, IMAGE, strict=True)
    torch.testing.assert_close(folded(IMAGE), model(IMAGE), **DOUBLE)


class Block(nn.Module):
    """Attention and a gated MLP; the windows of a Swin transformer between norm and layers if there is a shift."""

    def __init__(self, size: int = 8, norm=nn.LayerNorm, bias: bool = True, shift: int = 0) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.shift = norm(size), norm(size), shift
        self.q, self.k, self.v, self.o = (nn.Linear(size, size, bias) for _ in range(4))
        self.gate, self.up = nn.Linear(size, 2 * size, bias), nn.Linear(size, 2 * size, bias)
        self.down, self.drop = nn.Linear(2 * size, size, bias), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        if self.shift:
            y = y.view(x.shape[0], 4, 4, -1).roll((-self.shift, -self.shift), (1, 2))
            y = y.view(-1, 2, 2, 2, 2, y.shape[-1]).transpose(2, 3).reshape(-1, 4, y.shape[-1])
        y = self.o(F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y)))
        x = x + y.reshape(x.shape)
        y = self.drop(self.ln_2(x)).to(x.dtype)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_several_layers_take_it_and_views_may_be_between(norm, bias, shift):
    model = lively(Block(norm=norm, bias=bias, shift=shift))
    x = torch.randn(3, 16, 8).double()
    folded, report = normkit.fold(model, x, strict=True)
    assert [row.layers for row in report.folds] == [("q", "k", "v"), ("gate", "up")]
    assert report.graph
    new = [key for row in report.folds for key in row.new_keys]
    wanted = [f"{name}.bias" for name in ("q", "k", "v", "gate", "up")]
    assert new == (wanted if norm is nn.LayerNorm and not bias else [])
    torch.testing.assert_close(folded(x), model(x), **DOUBLE)
    parts = "weight and bias" if norm is nn.LayerNorm else "weight"
    assert str(report).splitlines()[0].startswith(f"ln_1: {parts} of {norm.__name__} folded into q, k, v")
    assert report.to_dict()["folds"][1]["into"] == "gate, up"


def net(forward, **layers) -> Net:
    torch.manual_seed(2)
    return Net(forward, **{"ln": nn.LayerNorm(4), "fc": nn.Linear(4, 4)} | layers)


def tied(model: Net) -> Net:
    model.fc.weight = model.emb.weight
    return model


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_pre_hook(lambda *_: None)
    return module


def experts(self: Net, x: Tensor) -> Tensor:
    y = self.ln(x)
    return self.fc(y) if x.sum() > 1e9 else self.other(y)


WEIGHTS = nn.Module()
WEIGHTS.weight = nn.Parameter(torch.randn(3, 4, 5))
REFUSED = {
    "a residual": (net(lambda s, x: (lambda y: s.fc(y) + y)(s.ln(x))), "the output of 'ln' also goes to add()"),
    "the caller": (net(lambda s, x: (lambda y: (s.fc(y), y[0]))(s.ln(x))), "also goes to the caller of the model"),
    "an activation": (net(lambda s, x: s.fc(s.ln(x).relu())), "its output goes to relu(), and to no linear layer"),
    "another norm": (
        net(lambda s, x: s.fc(s.ln2(s.ln(x))), ln2=nn.LayerNorm(4, elementwise_affine=False)),
        "its output goes to layer_norm() in 'ln2', and to no linear layer",
    ),
    "another norm with a weight": (
        net(lambda s, x: s.fc(s.ln2(s.ln(x)).relu()), ln2=nn.LayerNorm(4)),
        "its output goes to 'ln2', a LayerNorm, and to no linear layer",
    ),
    "experts of one tensor": (
        net(lambda s, x: s.fc(s.ln(x)).sum() + torch.bmm(s.ln(x[:, :3]).transpose(0, 1), s.w.weight), w=WEIGHTS),
        "the output of 'ln' also goes to bmm()",
    ),
    "an expert that is not reached": (net(experts, other=nn.Linear(4, 4)), "the example does not reach 'fc', which"),
    "a layer with other inputs": (
        net(lambda s, x: s.fc(s.ln(x)) + s.fc(x)),
        "'fc' also has other inputs",
    ),
    "another dimension": (
        net(lambda s, x: s.fc(s.ln(x[:, :4]).transpose(1, 2))),
        "it normalizes another dimension than 'fc' sums over",
    ),
    "features in another order": (
        net(lambda s, x: s.fc(s.ln(x)) + s.fc(s.ln(x).flip(-1))),
        "the calls of 'fc' get its features in different orders",
    ),
    "zeros between": (
        net(lambda s, x: s.fc(F.pad(s.ln(x), (0, 0, 1, 0)))),
        "zeros are put between it and 'fc', which its bias does not shift",
    ),
    "ones between": (net(lambda s, x: s.fc(F.pad(s.ln(x), (0, 0, 1, 0), value=1.0))), "its output goes to pad()"),
    "a shared weight": (
        tied(net(lambda s, x: s.fc(s.ln(x) + 0 * s.emb(torch.tensor(1))), emb=nn.Embedding(4, 4))),
        "its output goes to add()",
    ),
    "a weight shared with an embedding": (
        tied(net(lambda s, x: s.fc(s.ln(x + s.emb(torch.tensor(1)))), emb=nn.Embedding(4, 4))),
        "the weight of 'fc' is also read by embedding(), as 'emb.weight': untie=True gives 'fc' its own",
    ),
    "a weight shared with a layer that does not run": (
        tied(net(lambda s, x: s.fc(s.ln(x)), emb=nn.Embedding(4, 4))),
        "the weight of 'fc' is also 'emb.weight': untie=True gives 'fc' its own",
    ),
    "a computed weight": (
        net(lambda s, x: s.fc(s.ln(x)), fc=nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))),
        "the weight of 'fc' is computed from others",
    ),
    "hooks on a layer": (net(lambda s, x: s.fc(s.ln(x)), fc=hooked(nn.Linear(4, 4))), "'fc' has hooks"),
    "hooks on the norm": (net(lambda s, x: s.fc(s.ln(x)), ln=hooked(nn.LayerNorm(4))), "it has hooks"),
    "an activation of its own": (
        net(lambda s, x: s.fc(s.ln(x)), ln=normkit.LayerNorm(4, activation="relu")),
        "its activation is applied before any layer reads it",
    ),
    "forward reads it": (
        net(lambda s, x: s.fc(s.ln(x.to(s.ln.weight.dtype)))),
        "forward also reads its weight, so that it may compute the norm itself",
    ),
    "another method": (
        net(lambda s, x: s.fc(s.ln(x)), ln=normkit.DynamicTanh(4)),
        "fold does not know what is left of dynamic_tanh without its weight",
    ),
    "padding": (
        net(lambda s, x: s.fc(s.ln(x)), ln=nn.GroupNorm(1, 5), fc=nn.Conv1d(5, 4, 3, padding=1)),
        "the zeros of its padding are not shifted",
    ),
    "an unused output": (net(lambda s, x: (s.ln(x), s.fc(x))[1]), "nothing reads its output"),
    "not reached": (net(lambda s, x: s.fc(x)), "the example does not reach it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_wrong_stays_with_the_reason(case):
    model, reason = REFUSED[case]
    model = randomised(model).double().eval()
    before, state = [*model.modules()], {key: (id(p), p.clone()) for key, p in model.named_parameters()}
    x = torch.randn(3, 5, 4).double()
    _, report = normkit.fold(model, x, inplace=True)
    assert reason in str(report)
    assert not report.folds
    assert [*model.modules()] == before
    assert all(id(p) == state[key][0] and torch.equal(p, state[key][1]) for key, p in model.named_parameters())
    with pytest.raises(StateError, match="strict=True allows no norm to stay"):
        normkit.fold(model, x, strict=True)


@pytest.mark.parametrize("first", [True, False])
def test_a_norm_with_a_gate_gives_up_its_weight(first):
    gated = normkit.GatedRMSNorm(4, gate_first=first)
    model = lively(net(lambda s, x: s.fc(s.ln(x, x.sin())), ln=gated))
    folded, _ = normkit.fold(model, TOKENS, strict=True)
    torch.testing.assert_close(folded(TOKENS), model(TOKENS), **DOUBLE)


def test_zeros_between_take_a_weight_alone():
    model = net(lambda s, x: s.fc(F.pad(s.ln(x), (0, 0, 1, 0))), ln=nn.RMSNorm(4))
    model, x = lively(model), torch.randn(3, 5, 4).double()
    folded, _ = normkit.fold(model, x, strict=True)
    torch.testing.assert_close(folded(x), model(x), **DOUBLE)


def test_parts_of_the_features_and_flat_ones():
    def way(self: Net, x: Tensor) -> Tensor:
        first, second = self.ln(x).chunk(2, -1)
        return self.fc(first.flip(-1)) + self.other(second) + self.flat(self.ln(x).flatten(1))[:, None]

    layers = {"fc": nn.Linear(2, 3), "other": nn.Linear(2, 3), "flat": nn.Linear(28, 3)}
    model = lively(net(way, **layers))
    folded, report = normkit.fold(model, TOKENS, strict=True)
    assert report.folds[0].layers == ("fc", "other", "flat")
    torch.testing.assert_close(folded(TOKENS), model(TOKENS), **DOUBLE)


def test_a_norm_used_twice_needs_layers_that_read_nothing_else():
    model = lively(net(lambda s, x: s.fc(s.ln(x)) + s.other(s.alias(-x * x)), other=nn.Linear(4, 4)))
    model.alias = model.ln
    folded, report = normkit.fold(model, TOKENS, strict=True)
    assert report.folds[0].names == ("ln", "alias")
    assert report.folds[0].layers == ("fc", "other")
    assert folded.alias is folded.ln
    torch.testing.assert_close(folded(TOKENS), model(TOKENS), **DOUBLE)


def test_experts_that_the_example_reaches_take_it_and_others_forbid_it():
    def way(self: Net, x: Tensor) -> Tensor:
        y = self.ln(x).reshape(-1, 4)
        out = torch.zeros_like(y)
        for index, expert in enumerate(self.experts):
            chosen = (self.fc(y).argmax(-1) == index).nonzero()[:, 0]
            if len(chosen):
                out[chosen] = expert(y[chosen])
        return out

    model = lively(net(way, fc=nn.Linear(4, 3), experts=nn.ModuleList(nn.Linear(4, 4) for _ in range(3))))
    folded, report = normkit.fold(model, torch.randn(40, 5, 4).double(), strict=True)
    assert report.folds[0].layers == ("fc", "experts.0", "experts.1", "experts.2")
    torch.testing.assert_close(folded(TOKENS), model(TOKENS), **DOUBLE)
    _, report = normkit.fold(model, torch.randn(1, 1, 4).double())
    assert "the example does not reach 'experts." in report.refusals[0].reason


def test_untie_gives_the_layer_its_own_weight():
    model = lively(tied(net(lambda s, x: s.fc(s.ln(x + s.emb(torch.tensor(1)))), emb=nn.Embedding(4, 4))))
    before = model.emb.weight.clone()
    folded, report = normkit.fold(model, TOKENS, untie=True, strict=True)
    (row,) = report.folds
    assert (row.untied, row.added_bytes) == (("fc.weight",), 4 * 4 * 8)
    assert "untied: fc.weight (0.000128 MB)" in str(row)
    assert torch.equal(folded.emb.weight, before)
    assert folded.fc.weight is not folded.emb.weight
    assert model.fc.weight is model.emb.weight
    torch.testing.assert_close(folded(TOKENS), model(TOKENS), **DOUBLE)
    read = lively(tied(net(lambda s, x: s.fc(s.ln(x)) + F.linear(x, s.emb.weight), emb=nn.Embedding(4, 4))))
    _, report = normkit.fold(read, TOKENS, untie=True)
    assert "the weight of 'fc' is also read by linear(), as 'emb.weight'" in report.refusals[0].reason
    assert "untie" not in report.refusals[0].reason


def test_where_chooses_norms():
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1)))
    x = torch.randn(2, 3, 5, 5).double()
    for where, names in ((None, ["1", "2"]), ("2", ["2"]), (lambda _, norm: isinstance(norm, nn.BatchNorm2d), ["1"])):
        folded, report = normkit.fold(model, x, where=where, strict=True)
        assert [row.name for row in report.folds] == names
        torch.testing.assert_close(folded(x), model(x), **DOUBLE)
    with pytest.raises(ArgumentError, match="where must name norms of the model, got '3'"):
        normkit.fold(model, x, where="3")


def test_training_mode_stays():
    model = lively(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))).train()
    _, report = normkit.fold(model, TOKENS)
    assert report.refusals[0].reason == "it is in training mode: call model.eval() first"
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("inplace", [False, True])
def test_outputs_that_change_undo_everything(inplace, monkeypatch: pytest.MonkeyPatch):
    model = lively(tied(net(lambda s, x: s.fc(s.ln(x)), emb=nn.Embedding(4, 4))))
    before, state = [*model.modules()], {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    monkeypatch.setattr("normkit.tools.fold.folding.Folding.largest_change", lambda *_: 1.0)
    _, report = normkit.fold(model, TOKENS, untie=True, inplace=inplace)
    assert "folding was undone: outputs changed by 1 of their size" in report.refusals[0].reason
    assert [*model.modules()] == before
    assert {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)} == state


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [nn.LayerNorm(8), normkit.RMSNorm(8, cast="before")])
def test_half_precision_is_folded_in_float64(dtype, norm):
    model = lively(nn.Sequential(copy.deepcopy(norm), nn.Linear(8, 4))).to(dtype)
    x = torch.randn(5, 8).to(dtype)
    folded, _ = normkit.fold(model, x, strict=True)
    assert folded[1].weight.dtype == dtype
    exact = copy.deepcopy(model).double()(x.double())
    # Weights, normalized values and outputs are rounded once each; a sum of 8 products of up to the output's size.
    assert (folded(x) - exact).abs().max() <= 8 * torch.finfo(dtype).eps * exact.abs().max().clamp(min=1)


def test_folded_models_are_copied_compiled_and_exported():
    model = lively(Block())
    x = torch.randn(2, 16, 8).double()
    folded, _ = normkit.fold(model, x)
    expected = model(x)
    torch._dynamo.reset()
    for same in (copy.deepcopy(folded), torch.compile(folded, backend="eager", fullgraph=True)):
        torch.testing.assert_close(same(x), expected, **DOUBLE)
    exported = torch.export.export(folded, (x,)).module()
    torch.testing.assert_close(exported(x), expected, **DOUBLE)


FRESH = """
import sys, torch, normkit
from test_fold_affine import Block, lively
torch.manual_seed(7)
model, x = lively(Block()), torch.ones(1, 16, 8).double()
folded, _ = normkit.fold(model, torch.randn(1, 16, 8).double())
folded.load_state_dict(torch.load(sys.argv[1] + "/state"), strict=True)
whole = torch.load(sys.argv[1] + "/model", weights_only=False)
x = torch.load(sys.argv[1] + "/x")
torch.save((folded(x).detach(), whole(x).detach()), sys.argv[1] + "/y")
"""


def test_a_state_dict_is_loaded_by_a_model_folded_the_same_way():
    (one, _), (two, _) = (normkit.fold(lively(Block()), torch.randn(2, 16, 8).double()) for _ in range(2))
    nn.init.normal_(one.q.weight)
    two.load_state_dict(one.state_dict(), strict=True)
    x = torch.randn(2, 16, 8).double()
    torch.testing.assert_close(two(x), one(x), rtol=0, atol=0)


@pytest.mark.slow
def test_a_state_dict_is_loaded_by_a_model_folded_the_same_way_elsewhere(tmp_path):
    model = lively(Block())
    x = torch.randn(2, 16, 8).double()
    folded, _ = normkit.fold(model, x)
    for name, value in {"state": folded.state_dict(), "model": folded, "x": x}.items():
        torch.save(value, tmp_path / name)
    subprocess.run([sys.executable, "-c", FRESH, str(tmp_path)], check=True, env=os.environ | {"PYTHONPATH": PATHS})
    for y in torch.load(tmp_path / "y"):
        torch.testing.assert_close(y, folded(x).detach(), rtol=0, atol=0)
