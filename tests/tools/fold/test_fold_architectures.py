"""Every norm of models of transformers and timm is folded, or stays with a reason; outputs stay."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import BASE, CAUSAL, TIMM, Double, architecture
from torch import Tensor

import normkit
from normkit.tools.fold.check import compared, distance
from normkit.tools.model.call import call_on_example
from normkit.tools.model.tree import norms

pytestmark = pytest.mark.filterwarnings("ignore:Casting complex values to real")  # of Llama 4's positions

FOLDED = {
    "gpt2": (5, 0),
    "llama": (5, 0),
    "mistral": (5, 0),
    "qwen2": (5, 0),
    "qwen3": (5, 4),
    "gemma": (5, 0),
    "gemma3_text": (5, 8),
    "olmo2": (1, 8),
    "mamba": (1, 2),
    "mamba2": (3, 2),
    "opt": (5, 0),
    "bloom": (5, 1),
    "falcon": (3, 0),
    "mpt": (5, 0),
    "phi": (3, 0),
    "gpt_neox": (5, 0),
    "deepseek_v3": (8, 1),
    "llama4_text": (3, 2),
    "mixtral": (3, 2),
    "bert": (0, 5),
    "roberta": (0, 5),
    "albert": (1, 2),
    "distilbert": (0, 5),
    "t5": (10, 2),
    "whisper": (10, 2),
    "vit": (4, 1),
    "swin": (5, 6),
    "segformer": (5, 4),
    "clip": (9, 2),
    "wav2vec2": (0, 7),
    "convnext": (3, 2),
    "detr": (8, 11),
    "convnext_atto": (16, 1),
    "convnextv2_atto": (16, 13),
    "mixer_s32_224": (8, 9),
    "poolformer_s12": (13, 12),
    "edgenext_xx_small": (19, 1),
    "pit_ti_224": (25, 0),
    "vit_tiny_patch16_224": (25, 0),
    "deit_tiny_patch16_224": (25, 0),
    "swin_tiny_patch4_window7_224": (15, 14),
    "cait_xxs24_224": (9, 0),
    "volo_d1_224": (40, 4),
}
"""How many norms are folded and how many stay: those of queries and keys (qwen3), before a sum (bert, gemma3) or a
router (mixtral), over other dimensions than the layer after them (mixer), or read by the model itself (mamba)."""

QUICK = ("gpt2", "llama")


def outputs(model, example):
    with torch.no_grad():
        return compared(call_on_example(model, example))


def check(kind: str) -> None:
    model, example = architecture(kind)
    known = {place.name: place.module for place, _ in norms(model)}
    # Ties are undone, so that the last norm of a language model is folded too.
    folded, report = normkit.fold(model, example, untie=True)
    named = {row.name for row in (*report.folds, *report.refusals)}
    assert named >= {name for name, norm in known.items() if [*norm.parameters(recurse=False)]}
    for row in report.folds:
        left = folded.get_submodule(row.name)
        assert not [*left.parameters()]
        assert all(layer in dict(model.named_modules()) for layer in row.layers)
    assert (len(report.folds), len(report.refusals)) == FOLDED[kind]
    wide = {
        key: each.double() if isinstance(each, Tensor) and each.is_floating_point() else each
        for key, each in _items(example)
    }
    wide = wide if isinstance(example, dict) else wide["x"]
    with Double():
        exact = copy.deepcopy(model).double()
        refolded, again = normkit.fold(exact, wide, untie=True)
        assert [row.name for row in again.folds] == [row.name for row in report.folds]
        truth = outputs(exact, wide)
        assert max(map(distance, outputs(refolded, wide), truth)) <= 1e-12
    before = outputs(model, example)
    for new, old, true in zip(outputs(folded, example), before, truth, strict=True):
        # Each weight is rounded once more, and sums are in another order, as errors of the model itself are.
        assert distance(new, old) <= max(1e-6, 4 * distance(old, true))


def _items(example):
    return example.items() if isinstance(example, dict) else [("x", example)]


@pytest.mark.parametrize("kind", QUICK)
def test_models(kind):
    check(kind)


@torch.no_grad()
def test_an_output_layer_is_untied_for_good(tmp_path):
    model, example = architecture("llama", tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    _, report = normkit.fold(model, example)
    reason = "the weight of 'lm_head' is also read by embedding(), as 'model.embed_tokens.weight': untie=True gives"
    assert reason in report.refusals[0].reason
    folded, report = normkit.fold(model, example, untie=True, strict=True)
    assert report.folds[-1].untied == ("lm_head.weight",)
    assert report.folds[-1].added_bytes == 64 * 32 * 4
    assert (model.config.tie_word_embeddings, folded.config.tie_word_embeddings) == (True, False)
    folded.tie_weights()
    folded.save_pretrained(tmp_path)
    # The weights of norms that are missing in the file begin at 1.
    loaded = type(model).from_pretrained(tmp_path).eval()
    for same in (folded, loaded):
        assert not torch.equal(same.lm_head.weight, same.model.embed_tokens.weight)
        torch.testing.assert_close(same(**example).logits, model(**example).logits, rtol=1e-5, atol=1e-6)


def test_a_list_of_ties_with_others_is_not_emptied(monkeypatch: pytest.MonkeyPatch):
    model, example = architecture("llama", tie_word_embeddings=True)
    pairs = {**model.all_tied_weights_keys, "model.layers.1.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight"}
    model.all_tied_weights_keys = pairs
    _, report = normkit.fold(model, example, untie=True, inplace=True)
    assert model.all_tied_weights_keys == pairs
    reasons = {row.name: row.reason for row in report.refusals}
    assert "config.tie_word_embeddings=False would also untie 'model.layers." in reasons["model.norm"]
    assert model.config.tie_word_embeddings


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted({*CAUSAL, *BASE, *TIMM} - {*QUICK}))
def test_all_models(kind):
    check(kind)
