"""Whole models are converted: transformers' and timm's, tied weights, mixtures of experts, and random networks."""

from __future__ import annotations

import pytest
import torch
from rms_nets import DOUBLE, WIDTH, Net, call, checked, linear, norm, parameter, subject
from rms_zoo import MODELS, TIMM, model_of
from torch import Tensor, nn

import normkit

# For each model: converted, refused, no layer norms; and a word of each reason.
FOUND: dict[str, tuple[int, int, int, tuple[str, ...]]] = {
    "gpt2": (9, 0, 0, ()),
    "opt": (5, 0, 0, ()),
    "bloom": (1, 5, 0, ("'transformer.word_embeddings_layernorm' (LayerNorm)",)),
    "falcon": (3, 0, 0, ()),
    "mpt": (5, 0, 0, ()),
    "phi": (3, 0, 0, ()),
    "gpt_neox": (5, 0, 0, ()),
    "bert": (1, 5, 0, ("(LayerNorm), and no weight", "gelu() in 'cls.predictions.transform.transform_act_fn'")),
    "t5": (0, 0, 12, ()),
    "gemma3": (0, 0, 13, ()),
    "olmo2": (0, 0, 9, ()),
    "qwen3": (0, 0, 9, ()),
    "deepseek_v3": (0, 0, 9, ()),
    "mamba2": (0, 0, 5, ()),
    "llama4": (0, 0, 7, ()),
    "stablelm": (21, 0, 0, ()),
    "vit": (5, 0, 0, ()),
    "clip_vision": (1, 5, 0, ("'vision_model.pre_layrnorm' (LayerNorm)", "goes to the caller of the model")),
    "clip_text": (5, 0, 0, ()),
    "swin": (6, 3, 0, ("'swin.embeddings.norm' (LayerNorm)", "cat() in 'swin.encoder.layers.0.downsample'")),
    "segformer": (
        3,
        6,
        0,
        ("'segformer.stages.0.patch_embeddings.layer_norm'", "stages.1.patch_embeddings.layer_norm'"),
    ),
    "convnext": (1, 4, 0, ("(ConvNextLayerNorm)", "layers.0.dwconv', and no", "goes to conv2d()")),
    "whisper": (7, 5, 0, ("gelu() in 'model.encoder'",)),
    "detr": (0, 11, 8, ("(LayerNorm), and no weight", "goes to linear()")),
    "vit_tiny_patch16_224": (5, 0, 0, ()),
    "deit_tiny_patch16_224": (5, 0, 0, ()),
    "mixer_s32_224": (0, 17, 0, ("linear() in 'blocks.0.mlp_tokens.fc2'",)),
    "convnext_atto": (1, 8, 0, ("conv_dw', and no weight", "'stem.1' (LayerNorm2d)", "goes to conv2d()")),
    "swin_tiny_patch4_window7_224": (6, 3, 0, ("'patch_embed.norm' (LayerNorm)", "flatten() in 'layers.1.downsample'")),
}
FAST = ("gpt2", "bert", "qwen3", "vit_tiny_patch16_224")
TIED = ("gpt2", "opt", "bloom", "falcon", "mpt", "bert", "whisper")
"""Models whose embedding is their head: with untie=True it becomes a copy."""


def check_zoo(name: str) -> None:
    model, x = model_of(name)
    _, report = checked(model, x, untie=True)
    *numbers, words = FOUND[name]
    assert [len(report.changes), len(report.refusals), len(report.kept)] == numbers
    for row in report.refusals:
        assert any(word in row.reason for word in words), row
    for word in words:
        assert any(word in row.reason for row in report.refusals), word
    assert len(report.untied) == (name in TIED)
    # The models have a few layers: in float32 some tens of roundings of 6e-8, and the same in float64.
    assert report.error <= 1e-6
    assert report.exact_error <= 1e-14
    assert report.exact_dtype == "float64"
    assert report.graph == (name in TIMM and "swin" not in name)


@pytest.mark.parametrize("name", FAST)
def test_models(name):
    check_zoo(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in (*MODELS, *TIMM) if name not in FAST])
def test_all_models(name):
    check_zoo(name)


def test_a_tied_embedding_is_refused_or_becomes_a_copy():
    model, x = model_of("gpt2")
    _, report = checked(model, x)
    assert report.changes == report.untied == ()
    size = 60 * 32 * 4
    text = (
        "'transformer.wte.weight' also goes to linear() in 'lm_head'; untie=True gives 'transformer.wte.weight' a copy"
    )
    assert all(f"{text}, of {size} bytes" in row.reason for row in report.refusals)
    converted, report = normkit.to_rms_norm(model, x, untie=True)
    assert [(row.name, row.other, row.bytes) for row in report.untied] == [
        ("transformer.wte.weight", "lm_head.weight", size)
    ]
    assert model.transformer.wte.weight is model.lm_head.weight
    assert model.config.tie_word_embeddings
    assert converted.transformer.wte.weight is not converted.lm_head.weight
    assert torch.equal(converted.lm_head.weight, model.lm_head.weight)
    assert not converted.config.tie_word_embeddings
    # By the definition: the embedding without the mean of each row, the head as it was.
    weight = model.transformer.wte.weight.detach().double()
    expected = (weight - weight.mean(1, keepdim=True)).float()
    torch.testing.assert_close(converted.transformer.wte.weight.detach(), expected)
    # transformers does not tie them again, and fold finds them apart.
    converted.tie_weights()
    assert converted.transformer.wte.weight is not converted.lm_head.weight
    assert not normkit.fold(converted, x)[1].refusals
    assert normkit.fold(model, x)[1].refusals


def test_a_copy_that_would_not_help_is_not_made():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.ln, self.head = nn.Embedding(12, WIDTH), norm(), linear(outside=12, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            h = self.embed(x)
            return self.head(self.ln(h.relu() + h))

    model = Tied()
    converted, report = normkit.to_rms_norm(model, torch.arange(6), untie=True, inplace=True)
    assert report.untied == report.changes == ()
    assert "relu()" in report.refusals[0].reason
    assert converted.head.weight is converted.embed.weight


def test_values_of_an_embedding_and_a_linear_layer_are_those_of_the_definition():
    model = Net(lambda s, x: s.ln(s.embed(x) + s.fc(s.embed(x))), embed=nn.Embedding(9, WIDTH), fc=linear(), ln=norm())
    converted, report = normkit.to_rms_norm(model, torch.arange(5))
    # The embedding is read by the linear layer too, before any norm.
    assert "also goes to linear() in 'fc'" in report.refusals[0].reason
    model.way = lambda s, x: s.ln(s.embed(x) + s.fc(s.other(x)))
    model.other = nn.Embedding(9, WIDTH)
    converted, report = normkit.to_rms_norm(model, torch.arange(5))
    for key, dim in {"embed.weight": 1, "fc.weight": 0, "fc.bias": 0}.items():
        old = model.state_dict()[key].double()
        torch.testing.assert_close(converted.state_dict()[key], (old - old.mean(dim, keepdim=True)).float())
    rows = {row.name: row for row in report.centred}
    old = model.embed.weight.detach()
    assert rows["embed.weight"].mean == pytest.approx(float(old.mean(1).abs().max() / old.abs().max()))
    assert rows["embed.weight"].rounding <= torch.finfo(torch.float32).eps
    assert type(converted.ln) is normkit.Norm
    assert converted.ln.weight is not model.ln.weight
    assert not converted.ln.center


def test_a_norm_without_bias_becomes_an_rms_norm():
    model = Net(lambda s, x: s.ln(s.first(x)), first=linear(), ln=nn.LayerNorm(WIDTH, eps=1e-3, bias=False))
    converted, _ = normkit.to_rms_norm(model, subject(), inplace=True)
    assert converted is model
    assert type(model.ln) is normkit.RMSNorm
    assert model.ln.eps == 1e-3


class Experts(nn.Module):
    """A mixture in which each expert gets the positions whose first feature is in its interval."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.first, self.ln, self.last, self.skip = linear(), norm(), norm(), skip
        self.experts = nn.ModuleList([linear(), linear()])

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).flatten(0, 1)
        out = torch.zeros_like(h)
        for index, expert in enumerate(self.experts):
            (rows,) = torch.where((x.flatten(0, 1)[:, 0] > 0) == bool(index))
            if len(rows) or not self.skip:
                out.index_add_(0, rows, expert(self.ln(h)[rows]))
        return self.last(h + out)


@pytest.mark.parametrize("skip", [False, True])
def test_experts_that_the_example_does_not_reach(skip):
    model, x = Experts(skip), subject()
    x[0, 0, 0], x[0, 1, 0] = -1, 1
    _, report = checked(model, x, strict=True)
    assert {f"experts.{index}.weight" for index in range(2)} <= {row.name for row in report.centred}
    _, report = normkit.to_rms_norm(model, x.abs())
    text = "the example does not reach 'experts.0', which may" if skip else "the example gives an empty tensor to"
    assert all(text in row.reason for row in report.refusals)
    assert len(report.refusals) == 2


class Block(nn.Module):
    """A branch of a random network, which is added to the stream after a norm."""

    def __init__(self, kind: int, generator: torch.Generator) -> None:
        super().__init__()
        self.kind, self.ln, self.wide = kind, norm(), 2 * WIDTH
        self.up, self.down = linear(outside=self.wide), linear(self.wide, bias=bool(kind % 2))
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.scale = parameter(WIDTH)
        self.number = torch.rand((), generator=generator).item() + 0.5

    def forward(self, h: Tensor) -> Tensor:
        y = self.ln(h)
        if self.kind == 0:
            return h + self.attention(y, y, y, need_weights=False)[0]
        y = self.down(torch.tanh(self.up(y)))
        if self.kind == 1:
            return h * self.number + y
        if self.kind == 2:
            return torch.lerp(h, y, self.number)
        if self.kind == 3:
            return torch.cat([h, y.flip(1)], 1)[:, 1:]
        return torch.addcmul(h.roll(1, 1), self.scale, y)


class Random(nn.Module):
    """A pre-norm network of random branches."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        kinds = torch.randint(0, 5, (4,), generator=generator).tolist()
        self.embed = linear(3)
        self.position = parameter(6, WIDTH)
        self.blocks = nn.ModuleList(Block(kind, generator) for kind in kinds)
        self.ln, self.head = norm(), linear(outside=3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.position
        for block in self.blocks:
            h = block(h)
        return self.head(self.ln(h))


@pytest.mark.parametrize("seed", range(8))
def test_random_networks(seed):
    torch.manual_seed(seed)
    model, x = Random(seed).double(), torch.randn(2, 6, 3, dtype=torch.float64)
    converted, report = checked(model, x, strict=True)
    assert len(report.changes) == 5
    for sample in (x, torch.randn_like(x) * 30):
        torch.testing.assert_close(call(converted, sample), call(model, sample), **DOUBLE)
