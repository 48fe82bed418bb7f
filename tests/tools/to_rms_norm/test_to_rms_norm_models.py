"""Whole models are converted: transformers' and timm's, tied weights, dtypes, modes, errors, and random networks."""

from __future__ import annotations

import copy
import io
import subprocess
import sys

import pytest
import torch
from rms_nets import DOUBLE, WIDTH, Net, call, checked, linear, norm, parameter, subject
from rms_zoo import MODELS, TIMM, model_of
from torch import Tensor, nn

import normkit
from normkit.errors import ArgumentError, StateError
from normkit.tools.to_rms_norm.change import Change
from normkit.tools.to_rms_norm.channels import Channels

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_centred_in_float64(dtype):
    model = Net(lambda s, x: s.last(s.ln(s.first(x))), first=linear(), ln=norm(), last=linear()).to(dtype)
    x = subject().to(dtype)
    converted, report = normkit.to_rms_norm(model, x, strict=True)
    weight = model.first.weight.detach().double()
    assert torch.equal(converted.first.weight, (weight - weight.mean(0)).to(dtype))
    assert report.exact_error <= 1e-14
    # Weights are rounded once, and so is each of the outputs of three layers: by half a unit of the last place.
    exact = copy.deepcopy(model).double()(x.double())
    assert (converted(x) - exact).abs().max() <= 8 * torch.finfo(dtype).eps * exact.abs().max()
    assert report.tolerance == torch.finfo(dtype).eps ** 0.5
    assert 0 < max(row.rounding for row in report.centred) <= torch.finfo(dtype).eps


def test_modes_hooks_and_requires_grad_stay():
    model = Net(lambda s, x: s.ln(s.drop(s.first(x))), first=linear(), drop=nn.Dropout(), ln=norm()).train()
    model.drop.eval()
    model.first.weight.requires_grad_(False)
    model.ln.requires_grad_(False)
    converted, report = normkit.to_rms_norm(model, subject(), strict=True)
    assert [module.training for module in converted.modules()] == [module.training for module in model.modules()]
    assert converted.ln.training
    assert not converted.first.weight.requires_grad
    assert converted.first.bias.requires_grad
    assert not converted.ln.weight.requires_grad
    assert "RMSNormReport" not in str(report)
    assert report.to_dict()["centred"][0]["name"] in ("first.weight", "first.bias")


@pytest.mark.parametrize("inplace", [False, True])
def test_outputs_that_change_undo_everything(inplace, monkeypatch: pytest.MonkeyPatch):
    model, x = model_of("gpt2")
    before, state = [*model.modules()], {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    attributes = [dict(vars(module)) for module in model.modules()]
    right, centre = Channels.centred, Change.centre

    def wrong(self, name, place):
        # Not all of them, because a norm ignores the scale of its whole input.
        factor = 1.01 if "c_proj" in name else 1.0
        monkeypatch.setattr(Channels, "centred", lambda self, x: right(self, x) * factor)
        row = centre(self, name, place)
        monkeypatch.setattr(Channels, "centred", right)
        return row

    monkeypatch.setattr(Change, "centre", wrong)
    _, report = normkit.to_rms_norm(model, x, inplace=inplace, untie=True)
    assert report.changes == report.centred == report.untied == ()
    assert all("undone: in torch.float64 outputs changed by" in row.reason for row in report.refusals)
    monkeypatch.setattr("normkit.tools.to_rms_norm.conversion.EXACT", {torch.float64: 1.0})
    _, report = normkit.to_rms_norm(model, x, inplace=inplace, untie=True, tolerance=1e-4)
    assert report.changes == ()
    assert all("undone: outputs changed by" in row.reason for row in report.refusals)
    assert report.error > report.tolerance == 1e-4
    assert [*model.modules()] == before
    assert {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)} == state
    assert [dict(vars(module)) for module in model.modules()] == attributes
    assert model.config.tie_word_embeddings


def hidden(function, x: Tensor) -> Tensor:
    """A call that no recorder of torch's functions sees."""
    with torch._C.DisableTorchFunction():
        return function(x)


def test_readers_and_writers_that_are_not_seen():
    model = Net(lambda s, x: (lambda h: s.ln(h) + hidden(torch.relu, h))(s.first(x)), first=linear(), ln=norm())
    weight = model.first.weight
    _, report = normkit.to_rms_norm(model, subject(), inplace=True)
    assert "the conversion was undone: in torch.float64 outputs changed by" in report.refusals[0].reason
    assert model.first.weight is weight
    model.way = lambda s, x: s.ln(hidden(torch.relu, s.first(x)))
    _, report = normkit.to_rms_norm(model, subject())
    assert "contains a tensor that code made which calls no function of torch" in report.refusals[0].reason


def test_a_model_that_fails_without_its_norm_is_put_back():
    def way(s, x):
        assert isinstance(s.ln, nn.LayerNorm), "no layer norm"
        return s.ln(s.first(x))

    model = Net(way, first=linear(), ln=norm())
    before = [*model.modules()]
    _, report = normkit.to_rms_norm(model, subject(), inplace=True)
    assert "undone: the converted model raises AssertionError: no layer norm" in report.refusals[0].reason
    assert [*model.modules()] == before


def test_a_model_that_raises_is_as_it_was(monkeypatch: pytest.MonkeyPatch):
    model = Net(lambda s, x: s.ln(s.first(x)), first=linear(), ln=norm())
    before, weight = [*model.modules()], model.first.weight
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        normkit.to_rms_norm(model, torch.randn(2, 3), inplace=True)
    monkeypatch.setattr("normkit.tools.to_rms_norm.conversion.distance", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        normkit.to_rms_norm(model, subject(), inplace=True)
    monkeypatch.undo()
    model.ln2 = norm()
    with pytest.raises(StateError, match="ln2: LayerNorm stays, the example does not reach it"):
        normkit.to_rms_norm(model, subject(), inplace=True, strict=True)
    assert [*model.modules()][:3] == before
    assert model.first.weight is weight
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("model", "example", "error", "text"),
    [
        (nn.Sequential(linear(), norm()), "image", ArgumentError, "got str: give one batch"),
        (nn.Sequential(nn.LazyLinear(4), norm(4)), subject(), StateError, "'0' does not: call the model once"),
        (Net(lambda s, x: 3, ln=norm()), subject(), ArgumentError, "got none of floating point from Net"),
        (Net(lambda s, x: x * torch.nan, ln=norm()), subject(), ArgumentError, "only nan, inf or empty ones from Net"),
        (nn.Sequential(linear(device="meta"), norm()), subject(), StateError, "'0.weight' is on the meta device"),
    ],
)
def test_wrong_arguments(model, example, error, text):
    with pytest.raises(error, match=text):
        normkit.to_rms_norm(model, example)


def test_compiled_models_are_refused():
    model = nn.Sequential(linear(), norm())
    model[0].compile(backend="eager")
    with pytest.raises(StateError, match="'0' is compiled: convert first and compile the result"):
        normkit.to_rms_norm(model, subject())


def test_a_model_with_a_dtype_of_its_own_is_compared_in_that():
    model = Net(lambda s, x: s.ln(s.first(x.float())), first=linear(), ln=norm())
    _, report = normkit.to_rms_norm(model, subject(), strict=True)
    assert report.exact_dtype == "float32"
    assert 0 < report.exact_error <= 1e-6


def test_a_norm_that_returns_its_input_passes_it_on():
    def way(s, x):
        y, h = s.ln(s.first(x), residual=s.second(x), return_residual=True)
        return y + s.first(h)

    model = Net(way, first=linear(), second=linear(), ln=normkit.LayerNorm(WIDTH))
    _, report = normkit.to_rms_norm(model, subject())
    assert report.refusals[0].reason == "it is called with more than its input"
    model.way = lambda s, x: (lambda h: s.last(s.ln(h)) + sum(s.other(h, return_residual=True)))(s.first(x))
    model.last, model.other = linear(), normkit.LayerNorm(WIDTH)
    _, report = normkit.to_rms_norm(model, subject())
    assert report.changes == ()
    assert "also goes to" in report.refusals[0].reason


def test_a_buffer_of_the_state_is_centred():
    model = Net(lambda s, x: s.ln(s.first(x) + s.table), first=linear(), ln=norm())
    model.register_buffer("table", torch.randn(5, WIDTH))
    converted, report = checked(model, subject(), strict=True)
    assert {row.name for row in report.centred} == {"first.weight", "first.bias", "table"}
    assert isinstance(converted.get_buffer("table"), Tensor)


def test_converted_models_compile_export_and_load(tmp_path):
    model = nn.Sequential(linear(), norm(), linear())
    converted, _ = normkit.to_rms_norm(model, subject(), strict=True)
    x = subject()
    expected = converted(x)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(converted, backend="eager")(x), expected)
    torch.testing.assert_close(torch.export.export(converted, (x,)).module()(x), expected)
    torch.testing.assert_close(copy.deepcopy(converted)(x), expected)
    torch.save((converted, x, expected), tmp_path / "model.pt")
    code = "import torch; m, x, y = torch.load(r'%s', weights_only=False); torch.testing.assert_close(m(x), y)" % (
        tmp_path / "model.pt"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    buffer = io.BytesIO()
    torch.save(converted.state_dict(), buffer)
    buffer.seek(0)
    model.load_state_dict(torch.load(buffer))
    # The original architecture with the new weights: other roundings of the same function.
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


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
