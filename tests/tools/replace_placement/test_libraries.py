"""Models of torch, timm and transformers: against blocks written by hand from the models' own layers."""

import copy
import warnings

import pytest
import torch
from placed_blocks import randomised
from torch import nn

import normkit
import zoo

IDS = torch.arange(14).reshape(2, 7)
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 32,
    "max_position_embeddings": 16,
}


def of_transformers(name, **options):
    """A model without head, in float64."""
    zoo._torchvision()
    import transformers

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, f"{name}Config")(**options)
        return getattr(transformers, f"{name}Model")(config).double().eval()


def gpt2():
    return of_transformers("GPT2", n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=16)


def bert():
    return of_transformers("Bert", **SIZES)


def llama():
    return of_transformers("Llama", **SIZES)


def olmo2():
    return of_transformers("Olmo2", **SIZES)


def gemma3():
    return of_transformers("Gemma3Text", head_dim=8, num_key_value_heads=1, **SIZES)


def branches_of(model, x):
    """Input of the stack, and for each block of a model of transformers its branches as functions."""
    places = torch.arange(IDS.shape[1])[None]
    if hasattr(model, "wte"):
        start = model.wte(IDS) + model.wpe(places)
        return start, [each for b in model.h for each in (lambda h, b=b: b.attn(h)[0], b.mlp)]
    if hasattr(model, "encoder"):

        def attend(h, layer):
            return layer.attention.output.dense(layer.attention.self(h)[0])

        pairs = (
            (lambda h, b=b: attend(h, b), lambda h, b=b: b.output.dense(b.intermediate(h))) for b in model.encoder.layer
        )
        return model.embeddings(IDS), [each for pair in pairs for each in pair]
    start = model.embed_tokens(IDS)

    def attended(h, layer):
        kinds = model.config.layer_types[layer.self_attn.layer_idx :][:1] if "Gemma" in type(model).__name__ else []
        turns = model.rotary_emb(h, places, *kinds)
        return layer.self_attn(hidden_states=h, position_embeddings=turns, attention_mask=None, position_ids=places)[0]

    return start, [each for b in model.layers for each in (lambda h, b=b: attended(h, b), b.mlp)]


def by_hand(model, to, report):
    modules = dict(model.named_modules())
    x, branches = branches_of(model, IDS)
    ends = {(row.place, row.change): modules[row.name] for row in report.stacks if row.change != "removed"}
    stem = ends.get(("stem", "added"))
    x = x if stem is None else stem(x)
    for branch, row in zip(branches, report.blocks, strict=True):
        own = modules[row.name]
        if to == "pre":
            x = x + branch(own(x))
        elif to == "post":
            x = own(x + branch(x))
        else:
            first, second = two_norms(modules, row, own)
            x = x + second(branch(first(x)))
    final = [norm for (place, _), norm in ends.items() if place == "final"]
    return final[0](x) if final else x


def two_norms(modules, row, own):
    if not row.added:  # Gemma has both
        pairs = {
            "input_layernorm": "post_attention_layernorm",
            "pre_feedforward_layernorm": "post_feedforward_layernorm",
        }
        holder, _, leaf = row.name.rpartition(".")
        return own, modules[f"{holder}.{pairs[leaf]}"]
    new = modules[row.added[0]]
    return (new, own) if row.added[0].endswith("_input") else (own, new)


FROM = {"gpt2": "pre", "bert": "post", "llama": "pre", "olmo2": "output", "gemma3": "sandwich"}
MADE = {"gpt2": gpt2, "bert": bert, "llama": llama, "olmo2": olmo2, "gemma3": gemma3}


USUAL = {("gpt2", "post"), ("bert", "pre"), ("llama", "peri"), ("gemma3", "pre"), ("olmo2", "sandwich")}
CASES = [
    pytest.param(name, to, marks=() if (name, to) in USUAL else pytest.mark.slow)
    for name in FROM
    for to in ("pre", "post", "peri", "sandwich")
]


@pytest.mark.parametrize(("name", "to"), CASES)
def test_transformers(name, to):
    model = MADE[name]()
    new, report = normkit.replace_placement(model, to, example={"input_ids": IDS})
    assert not report.refusals
    assert [row.before for row in report.blocks] == [FROM[name]] * 4
    randomised(new)
    with torch.no_grad():
        want = by_hand(new, to, report)
        # The norms of Llama and its like compute in float32, both times on equal numbers.
        torch.testing.assert_close(new(IDS).last_hidden_state, want, rtol=1e-12, atol=1e-12)
    assert torch.equal(copy.deepcopy(new)(IDS).last_hidden_state, new(IDS).last_hidden_state)
    new.train()(IDS).last_hidden_state.square().mean().backward()
    assert all(p.grad is not None for key, p in new.named_parameters() if "pooler" not in key)
    assert type(new).__name__ == type(model).__name__


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt2", marks=pytest.mark.slow), "gemma3"])
def test_hidden_states_caches_and_checkpointing_of_transformers_work_after_it(name):
    new, _ = normkit.replace_placement(MADE[name](), "post", example={"input_ids": IDS})
    out = new(IDS, use_cache=True, output_hidden_states=True)
    assert len(out.hidden_states) == 3
    # One token at a time, with what the cache holds of those before: other kernels, in float64.
    first = new(IDS[:, :6], use_cache=True)
    last = new(IDS[:, 6:], past_key_values=first.past_key_values).last_hidden_state
    torch.testing.assert_close(last, out.last_hidden_state[:, 6:], rtol=1e-5, atol=1e-5)
    y = new.train()(IDS, use_cache=False).last_hidden_state
    if not any(isinstance(m, nn.Dropout) and m.p for m in new.modules()):
        new.activation_checkpointing_enable()
        torch.testing.assert_close(new(IDS, use_cache=False).last_hidden_state, y)


def of_timm():
    zoo._torchvision()
    return pytest.importorskip("timm")


def vit():
    timm = of_timm()
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    model = timm.models.VisionTransformer(**sizes, init_values=0.5, drop_path_rate=0.2)
    return model.double().eval()


@pytest.mark.parametrize("to", ["post", "peri", "sandwich"])
def test_timm(to):
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    model, report = normkit.replace_placement(vit(), to, example=x)
    randomised(model)
    modules = dict(model.named_modules())
    y = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
    y = model.blocks[0].stem_norm(y) if to == "peri" else y
    rows = iter(report.blocks)
    for block in model.blocks:
        for branch, scale in ((block.attn, block.ls1), (block.mlp, block.ls2)):
            row = next(rows)
            norm = modules[row.name]
            # The norm of the output is before the scale, which would have no effect before a norm.
            post = to == "post"
            y = norm(y + scale(branch(y))) if post else y + scale(modules[row.added[0]](branch(norm(y))))
    y = y if to == "post" else model.norm(y)
    torch.testing.assert_close(model(x), model.forward_head(y), rtol=1e-12, atol=1e-12)
    assert ("norm.weight" in model.state_dict()) == (to != "post")


def test_a_norm_of_the_output_comes_before_stochastic_depth():
    x = torch.randn(8, 3, 16, 16, dtype=torch.float64)
    model, _ = normkit.replace_placement(vit(), "sandwich", example=x)
    seen = []
    block = model.blocks[1]
    block.norm1_output.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    model.train()(x)
    assert not any((sample == 0).all() for sample in seen[0])  # nothing is dropped yet


def encoder(norm_first, depth=2):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=norm_first)
    norm = nn.LayerNorm(16) if norm_first else None
    return nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False).double().eval()


def encoded(model, x, to):
    for layer in model.layers:
        x = layer.stem_norm(x) if hasattr(layer, "stem_norm") else x
        for number, branch in ((1, lambda h, m=layer: m._sa_block(h, None, None)), (2, layer._ff_block)):
            norm = getattr(layer, f"norm{number}")
            if to == "pre":
                x = x + branch(norm(x))
            elif to == "post":
                x = norm(x + branch(x))
            else:
                x = x + getattr(layer, f"norm{number}_output")(branch(norm(x)))
    return x if model.norm is None or to == "post" else model.norm(x)


@pytest.mark.parametrize("to", ["pre", "post", "peri", "sandwich"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_own_layers(norm_first, to):
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    model, report = normkit.replace_placement(encoder(norm_first), to, example=x)
    assert [row.before for row in report.blocks] == ["pre" if norm_first else "post"] * 4
    assert all(layer.norm_first == (to != "post") for layer in model.layers)
    randomised(model)
    want = encoded(model, x, to)
    torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-12)
    with torch.no_grad():  # where torch may compute the whole layer at once
        torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-12)
    plain = {"pre", "post"}
    assert (type(model.layers[0]) is nn.TransformerEncoderLayer) == (to in plain)


def test_torchs_layers_back_from_peri_have_no_norms_left():
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    there, _ = normkit.replace_placement(encoder(True), "peri", example=x)
    back, report = normkit.replace_placement(there, "post", example=x)
    assert {row.before for row in report.blocks} == {"peri"}
    names = {key.rpartition(".")[0].rpartition(".")[2] for key in back.state_dict() if "norm" in key}
    assert names == {"norm1", "norm2"}
    randomised(back)
    torch.testing.assert_close(back(x), encoded(back, x, "post"), rtol=1e-12, atol=1e-12)


def test_encoder_and_decoder_of_torch():
    torch.manual_seed(0)
    model = nn.Transformer(16, 2, 1, 1, 24, batch_first=True).double().eval()
    x = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(2, 4, 16, dtype=torch.float64)
    new, report = normkit.replace_placement(model, "sandwich", example=x)
    assert [row.name.rpartition(".")[2] for row in report.blocks] == ["norm1", "norm2", "norm1", "norm2", "norm3"]
    randomised(new)
    memory = encoded(new.encoder, x[0], "sandwich")
    layer, y = new.decoder.layers[0], x[1]
    y = y + layer.norm1_output(layer._sa_block(layer.norm1(y), None, None))
    y = y + layer.norm2_output(layer._mha_block(layer.norm2(y), memory, None, None))
    y = y + layer.norm3_output(layer._ff_block(layer.norm3(y)))
    torch.testing.assert_close(new(*x), new.decoder.norm(y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda timm: timm.models.ConvNeXt(depths=(1,) * 4, dims=(8,) * 4, num_classes=2), "is inside the branch"),
        (
            lambda timm: timm.models.ResNetV2((2,), (128,), num_classes=2, stem_chs=32),
            "further norms over channels",
        ),
    ],
)
def test_convolutional_networks_stay(make, reason):
    torch.manual_seed(0)
    model = make(of_timm()).eval()
    x = torch.randn(2, 3, 32, 32)
    new, report = normkit.replace_placement(model, "post", example=x)
    assert reason in str(report)
    assert torch.equal(new(x), model(x))
