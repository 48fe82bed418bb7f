"""Small members of many families, with random norms, whose norms are folded; and their arithmetic in float64."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import zoo
from tools.convert.newer_models import CONFIGS
from tools.subjects import randomised, still

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = TEXT | {"num_key_value_heads": 2, "head_dim": 8}
ENCODER_DECODER = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}

CAUSAL: dict[str, dict[str, Any]] = {
    **{kind: zoo._small(kind) for kind in ("gpt2", "llama", "mistral", "qwen2", "gemma", "mamba", "gpt_neox")},
    **{kind: CONFIGS[kind] for kind in ("gemma3_text", "olmo2", "mamba2", "llama4_text")},
    "qwen3": GROUPED,
    "opt": TEXT | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": TEXT | {"new_decoder_architecture": False, "bias": False, "parallel_attn": True, "alibi": False},
    "mpt": {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 64},
    "phi": TEXT,
    "deepseek_v3": TEXT
    | EXPERTS
    | {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    },
    "mixtral": GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
}
BASE: dict[str, dict[str, Any]] = {
    **{kind: zoo._small(kind) for kind in ("bert", "roberta", "albert", "distilbert", "t5", "wav2vec2")},
    "whisper": ENCODER_DECODER | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16},
    "vit": VISION,
    "swin": {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
    },
    "segformer": {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sr_ratios": [2, 1],
        "hidden_sizes": [16, 32],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2],
    },
    "clip": {
        "text_config": TEXT,
        "vision_config": VISION,
        "projection_dim": 16,
    },
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "detr": ENCODER_DECODER
    | {
        "num_queries": 4,
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
        "backbone_config": {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "out_features": ["stage2"],
        },
    },
}
TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {},
    "deit_tiny_patch16_224": {},
    "swin_tiny_patch4_window7_224": {},
    "convnext_atto": {},
    "convnextv2_atto": {},
    "mixer_s32_224": {},
    "poolformer_s12": {},
    "edgenext_xx_small": {},
    "pit_ti_224": {},
    "volo_d1_224": {},
    "cait_xxs24_224": {"depth": 2},
}


def architecture(kind: str, **changes: Any) -> tuple[nn.Module, Any]:
    """A model in evaluation mode, without chance and with random norms, and an example of its input."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind in TIMM:
            model, example = zoo.image_model(kind, **TIMM[kind])
        else:
            zoo._torchvision()
            transformers = importlib.import_module("transformers")
            transformers.logging.set_verbosity_error()
            options = (CAUSAL.get(kind) or BASE[kind]) | changes
            config = transformers.AutoConfig.for_model(kind, **options)
            config._experts_implementation = "eager"  # torch's grouped product does not know float64
            made = transformers.AutoModelForCausalLM if kind in CAUSAL else transformers.AutoModel
            model, example = made.from_config(config), _example(kind)
    return still(randomised(model)).eval(), example


def _example(kind: str) -> Any:
    words = torch.arange(24).reshape(2, 12) % 61 + 3
    image = torch.randn(2, 3, 32, 32)
    if kind in CAUSAL:
        return {"input_ids": words, "use_cache": False}
    if kind == "t5":
        return {"input_ids": words, "decoder_input_ids": words, "use_cache": False}
    if kind == "whisper":
        return {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": words, "use_cache": False}
    if kind == "clip":
        return {"input_ids": words, "pixel_values": image}
    if kind == "wav2vec2":
        return {"input_values": torch.randn(2, 800)}
    if kind in ("vit", "swin", "segformer", "convnext", "detr"):
        return {"pixel_values": image}
    return {"input_ids": words}


class Double(TorchFunctionMode):
    """Everything in float64: what a model computes in float32 or makes in it, too. Rounding to it would hide errors."""

    def __enter__(self) -> Any:
        self.default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *args: Any) -> Any:
        torch.set_default_dtype(self.default)
        return super().__exit__(*args)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        wide = {torch.float32: torch.float64}
        swap = lambda v: wide.get(v, v) if isinstance(v, torch.dtype) else v  # noqa: E731
        return func(*map(swap, args), **{key: swap(value) for key, value in (kwargs or {}).items()})
