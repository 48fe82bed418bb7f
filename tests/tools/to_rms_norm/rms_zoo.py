"""Small models of other libraries for the tests of `to_rms_norm`, with random weights, norms and biases."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

import zoo

SIZES: dict[str, Any] = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = SIZES | {"intermediate_size": 48}
ROPE = WIDE | {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
ENCODER = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
IMAGE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}

# Class, and the arguments of its configuration.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 60, "n_embd": 32, "n_layer": 4, "n_head": 4}),
    "opt": ("OPTForCausalLM", "OPTConfig", WIDE | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"vocab_size": 60, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("FalconForCausalLM", "FalconConfig", SIZES),
    "mpt": ("MptForCausalLM", "MptConfig", {"vocab_size": 60, "d_model": 32, "n_layers": 2, "n_heads": 4}),
    "phi": ("PhiForCausalLM", "PhiConfig", WIDE),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", WIDE),
    "bert": ("BertForMaskedLM", "BertConfig", WIDE),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48}
        | {"num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    ),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", ROPE),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", ROPE),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", ROPE),
    "deepseek_v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", WIDE | EXPERTS),
    "mamba2": (
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2}
        | {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2},
    ),
    "llama4": ("Llama4ForCausalLM", "Llama4TextConfig", ROPE | {"intermediate_size_mlp": 48, "num_local_experts": 2}),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", WIDE | {"qk_layernorm": True, "num_key_value_heads": 4}),
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGE | {"image_size": 32, "patch_size": 8}),
    "clip_vision": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", IMAGE | {"image_size": 32, "patch_size": 8}),
    "clip_text": ("CLIPTextModelWithProjection", "CLIPTextConfig", WIDE | {"eos_token_id": 59}),
    "swin": (
        "SwinForImageClassification",
        "SwinConfig",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16}
        | {"depths": [1, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    "segformer": (
        "SegformerForImageClassification",
        "SegformerConfig",
        {"num_encoder_blocks": 2, "depths": [1, 1]}
        | {"sr_ratios": [2, 1], "hidden_sizes": [16, 32], "patch_sizes": [7, 3], "strides": [4, 2]}
        | {"num_attention_heads": [2, 4], "mlp_ratios": [2, 2]},
    ),
    "convnext": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 1]},
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        ENCODER
        | HEADS
        | {
            "vocab_size": 60,
            "num_mel_bins": 8,
            "max_source_positions": 20,
            "pad_token_id": 0,
            "decoder_start_token_id": 1,
        },
    ),
    "detr": (
        "DetrForObjectDetection",
        "DetrConfig",
        ENCODER
        | HEADS
        | {"num_queries": 5, "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None},
    ),
}
TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 4, "init_values": 0.1},
    "deit_tiny_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 4},
    "mixer_s32_224": {"img_size": 64},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 32)},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "depths": (1, 2), "embed_dim": 16, "num_heads": (2, 4)},
}
IMAGES = ("vit", "clip_vision", "swin", "segformer", "convnext", "detr")


@torch.no_grad()
def drawn(model: nn.Module) -> nn.Module:
    """Random parameters everywhere, with means that are not 0, as after training."""
    for name, parameter in model.named_parameters():
        if "norm" in name.lower() or "ln_" in name:
            parameter.copy_(
                torch.rand_like(parameter) + 0.5 if name.endswith("weight") else torch.randn_like(parameter)
            )
        elif parameter.dim() > 1:
            parameter.copy_((torch.randn_like(parameter) + 0.3) / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(torch.randn_like(parameter) * 0.2 + 0.3)
    return model.eval()


def model_of(name: str) -> tuple[nn.Module, dict[str, Tensor] | Tensor]:
    """A small model in evaluation mode, and an example of its input."""
    torch.manual_seed(0)
    if name in TIMM:
        model, x = zoo.image_model(name, **TIMM[name])
        size = TIMM[name].get("img_size", 64)
        return drawn(model), x[..., :size, :size]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zoo._torchvision()
        import transformers

        cls, config, arguments = MODELS[name]
        settings = getattr(transformers, config)(**arguments)
        if name == "detr":
            settings.backbone_config = transformers.ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"]
            )
        model = getattr(transformers, cls)(settings)
    if name in IMAGES:
        return drawn(model), {"pixel_values": torch.randn(2, 3, 32, 32)}
    ids = torch.randint(2, 59, (2, 7))
    if name == "whisper":
        return drawn(model), {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": ids}
    if name == "t5":
        return drawn(model), {"input_ids": ids, "decoder_input_ids": ids}
    return drawn(model), {"input_ids": ids}
