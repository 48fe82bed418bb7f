"""Every parameter is in one group, and norms, biases and lengths are in the one without decay."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import normkit
from normkit.errors import ArgumentError, DtypeError, StateError
from zoo import image_model, language_model


def named(model: nn.Module, **options) -> tuple[set[str], set[str]]:
    """Names of the decayed and of the other parameters; each is there once, and none that is frozen."""
    groups = normkit.param_groups(model, weight_decay=0.1, **options)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    names = {id(p): name for name, p in model.named_parameters()}
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    decayed, free = ({names[id(p)] for p in group["params"]} for group in groups)
    return decayed, free


@pytest.mark.parametrize(
    "name", ["resnet10t", "vit_tiny_patch16_224", "convnextv2_atto", "swin_tiny_patch4_window7_224"]
)
def test_models_of_timm(name: str):
    """The oracle is timm's own rule: vectors are not decayed. It is right where all vectors are norms and biases."""
    model, _ = image_model(name)
    decayed, free = named(model)
    assert free == {n for n, p in model.named_parameters() if p.dim() == 1}
    if name.startswith("vit"):
        assert {"pos_embed", "cls_token"} <= decayed
    if name.startswith("swin"):
        assert any(n.endswith("relative_position_bias_table") for n in decayed)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "gemma", "albert", "gpt_neox"])
def test_models_of_transformers(kind: str):
    model, _ = language_model(kind)
    decayed, free = named(model)
    assert free == {n for n, p in model.named_parameters() if p.dim() == 1}
    assert any("embed" in n or "wte" in n or "shared" in n for n in decayed)


def test_vectors_that_are_no_norms_are_decayed():
    model, _ = image_model("convnext_atto")
    decayed, free = named(model)
    assert "stages.0.blocks.0.gamma" in decayed
    assert "stages.0.blocks.0.norm.weight" in free
    decayed, free = named(model, also="*.gamma")
    assert "stages.0.blocks.0.gamma" in free


def test_lengths_of_weight_norm():
    model = nn.Sequential(
        normkit.weight_norm(nn.Linear(3, 3)), parametrizations.weight_norm(nn.Linear(3, 3)), nn.LSTM(3, 3)
    )
    with pytest.warns(FutureWarning):
        model.append(nn.utils.weight_norm(nn.Linear(3, 3)))
    decayed, free = named(model)
    g = "parametrizations.weight.original0"
    assert {f"0.{g}", f"1.{g}", "3.weight_g"} <= free
    assert {"0.parametrizations.weight.original1", "3.weight_v", "2.weight_ih_l0"} <= decayed
    assert {"0.bias", "1.bias", "2.bias_ih_l0", "2.bias_hh_l0", "3.bias"} <= free


def test_other_parametrizations_are_no_lengths():
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(3, 3)), normkit.weight_standardization(nn.Linear(3, 3)))
    nn.utils.parametrize.register_parametrization(model[0], "bias", nn.Tanh())
    decayed, free = named(model)
    assert free == {"0.parametrizations.bias.original", "1.bias"}
    assert "1.parametrizations.weight.original" in decayed


def test_norms_of_every_make():
    class Gained(nn.Module):
        """Has a norm's parameters, and none of the usual names around it."""

        def __init__(self) -> None:
            super().__init__()
            self.downsample = nn.Sequential(nn.Conv1d(2, 2, 1, bias=False), normkit.BatchNorm1d(2))
            self.q = normkit.RMSNorm(2)
            self.image = nn.LayerNorm((2, 3))
            self.in_proj_bias = nn.Parameter(torch.zeros(2))
            self.bias_k = nn.Parameter(torch.zeros(1, 1, 2))
            self.biased = nn.Parameter(torch.zeros(2))

    decayed, free = named(Gained())
    assert decayed == {"downsample.0.weight", "biased"}
    assert {"image.weight", "q.weight", "downsample.1.weight", "in_proj_bias", "bias_k"} <= free


def test_a_matrix_in_what_is_only_called_a_norm_is_decayed():
    class NormedLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.scale = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.ones(1, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ nn.functional.normalize(self.weight, dim=1).T * self.scale

    assert named(nn.Sequential(NormedLinear())) == ({"0.weight"}, {"0.scale"})


def test_shared_parameters_are_in_one_group_and_a_norm_wins():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5), nn.LayerNorm(4), nn.LayerNorm(4), nn.Bilinear(1, 1, 4))
    model[1].weight = model[0].weight
    model[3].weight = model[2].weight
    model[4].register_parameter("scale", model[2].bias)
    decayed, free = named(model)
    assert decayed == {"0.weight", "4.weight"}
    assert free == {"1.bias", "2.weight", "2.bias", "3.bias", "4.bias"}
    before = nn.Sequential(nn.Bilinear(1, 1, 4), model[2])
    before[0].register_parameter("scale", model[2].bias)
    assert "0.scale" in named(before)[1]
    # Also what is exempted by the second of its names.
    assert "0.weight" in named(model, also="1.weight")[1]


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    model[0].requires_grad_(False)
    assert named(model) == (set(), {"1.weight", "1.bias"})
    # torch takes an empty group.
    torch.optim.SGD(normkit.param_groups(model, weight_decay=0.1), lr=0.1).step()


def test_what_is_exempted_by_the_caller():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4))
    assert named(model, also=["0.*"])[0] == {"1.weight"}
    assert named(model, also=lambda name, p: p.shape == (4, 4))[0] == {"0.weight"}
    assert named(model, also=[])[0] == {"0.weight", "1.weight"}


def test_decay_moves_what_is_decayed_and_nothing_else():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = copy.deepcopy(model)
    groups = normkit.param_groups(model, weight_decay=0.5, lr=0.1)
    assert [group["lr"] for group in groups] == [0.1, 0.1]
    optimizer = torch.optim.SGD(groups)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    # Without a gradient a step is w - lr * decay * w, one rounding apart.
    torch.testing.assert_close(model[0].weight, before[0].weight * 0.95, rtol=1e-6, atol=0)
    assert torch.equal(model[1].weight, before[1].weight)
    assert torch.equal(model[0].bias, before[0].bias)


def test_the_groups_pass_the_audit():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    report = normkit.audit(model, optimizer=torch.optim.AdamW(model.parameters(), weight_decay=0.1))
    (finding,) = [f for f in report.findings if f.code == "NK401"]
    assert "normkit.param_groups(model" in str(report)
    clean = normkit.audit(model, optimizer=torch.optim.AdamW(normkit.param_groups(model, weight_decay=0.1)))
    assert not [f for f in clean.findings if f.code == finding.code]


def test_of_a_compiled_model():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    groups = normkit.param_groups(torch.compile(model, backend="eager"), weight_decay=0.1, also="0.weight")
    assert [len(group["params"]) for group in groups] == [0, 4]


def test_of_a_model_on_meta():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), normkit.weight_norm(nn.Linear(4, 2)), nn.LayerNorm(2))
    assert named(copy.deepcopy(model).to("meta")) == named(model)


@pytest.mark.parametrize(
    ("model", "options", "error", "text"),
    [
        (nn.LayerNorm(2), {"weight_decay": -0.1}, ArgumentError, r"weight_decay must be .*at least 0, got -0\.1"),
        (nn.LayerNorm(2), {"weight_decay": math.nan}, ArgumentError, "weight_decay must be a finite number"),
        (nn.LayerNorm(2), {"weight_decay": "0.1"}, ArgumentError, r"got '0\.1'"),
        (nn.LayerNorm(2), {"lr": -1}, ArgumentError, "lr must be a finite number of at least 0, got -1"),
        (
            nn.LayerNorm(2),
            {"also": "wieght"},
            ArgumentError,
            "got 'wieght', which fits none of its 2: did you mean 'we",
        ),
        (nn.ReLU(), {}, StateError, "in ReLU there are none"),
        (nn.LayerNorm(2).requires_grad_(False), {}, StateError, "in LayerNorm all 2 are frozen: unfreeze some"),
        (nn.Sequential(nn.LazyLinear(2)), {}, StateError, r"'0\.weight' has none yet: call the model once"),
        (nn.Sequential(nn.LazyBatchNorm1d()), {}, StateError, r"'0\.weight' has none yet"),
        (3, {}, DtypeError, r"must be a torch\.nn\.Module, got int"),
    ],
)
def test_misuse(model, options, error, text):
    with pytest.raises(error, match=text):
        normkit.param_groups(model, **{"weight_decay": 0.1} | options)
