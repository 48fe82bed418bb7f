"""Small members of families whose norms have a gate, a weight for each head, or none; of transformers and diffusers.

diffusers is no requirement of the tests: the classes at the end have the names, attributes and arithmetic of its public
ones, as far as a norm is concerned.
"""

import importlib
import warnings

import torch
from torch import nn
from torch.nn import functional as F

import zoo

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HYBRID = SIZES | {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_chunk_size": 4,
}
LINEAR = SIZES | {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
CONFIGS = {
    "qwen3_next": LINEAR | {"mlp_only_layers": [0, 1]},
    "qwen3_5_text": LINEAR,
    "olmo_hybrid": LINEAR,
    "kimi_linear": SIZES | {"mlp_layer_types": ["dense", "dense"], "use_cache": False},
    "mamba2": {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 8,
        "state_size": 8,
        "n_groups": 2,
        "chunk_size": 4,
    },
    "falcon_mamba": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "zamba2": SIZES
    | {
        "num_hidden_layers": 4,
        "layer_types": ["mamba", "hybrid", "mamba", "hybrid"],
        "hybrid_layer_ids": [1, 3],
        "mamba_d_state": 8,
        "n_mamba_heads": 4,
        "mamba_ngroups": 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "adapter_rank": 4,
        "chunk_size": 4,
        "num_mem_blocks": 2,
    },
    "nemotron_h": SIZES
    | {
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 4,
        "layers_block_type": ["mamba", "attention"],
    },
    "bamba": HYBRID | {"attn_layer_indices": [1]},
    "falcon_h1": HYBRID | {"mamba_d_ssm": 64, "mamba_rms_norm": True, "mamba_norm_before_gate": False},
    "falcon_h1 before": HYBRID | {"mamba_d_ssm": 64, "mamba_rms_norm": True, "mamba_norm_before_gate": True},
    "granitemoehybrid": HYBRID
    | {"layer_types": ["mamba", "attention"], "num_local_experts": 0, "shared_intermediate_size": 32},
    "olmo2": SIZES,
    "gemma3_text": SIZES,
    "gemma3n_text": SIZES
    | {
        "num_kv_shared_layers": 0,
        "layer_types": ["full_attention"] * 2,
        "laurel_rank": 4,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": None,
    },
    "llama4_text": SIZES
    | {"num_local_experts": 2, "intermediate_size_mlp": 64, "use_qk_norm": True, "attn_temperature_tuning": False},
    "cohere": SIZES | {"use_qk_norm": True},
    "cohere2": SIZES,
    "nemotron": SIZES,
}
IMAGES = {
    "llama4_vision_model": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vision_output_dim": 16,
        "image_size": 28,
        "patch_size": 14,
        "projector_input_dim": 16,
        "projector_output_dim": 16,
    },
    "convnextv2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
}


def norm_of(family, name, *args, **options):
    """A norm of transformers' by the name of its class."""
    zoo._torchvision()
    made = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    return getattr(made, name)(*args, **options)


def newer_model(kind):
    """A model that takes and gives one tensor, in evaluation mode, and an example of its input."""
    if kind in OTHERS:
        return OTHERS[kind](), torch.randn(2, 5, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zoo._torchvision()
        transformers = importlib.import_module("transformers")
        transformers.logging.set_verbosity_error()  # of fused kernels that are not installed
        if kind == "llama4_vision_model":
            made = importlib.import_module("transformers.models.llama4.modeling_llama4")
            model = made.Llama4VisionModel(made.Llama4VisionConfig(**IMAGES[kind]))
        else:
            options = IMAGES.get(kind) or CONFIGS[kind]
            config = transformers.AutoConfig.for_model(kind.split()[0], **options)
            model = transformers.AutoModel.from_config(config)
    x = torch.randn(2, 3, 28, 28) if kind in IMAGES else torch.arange(24).reshape(2, 12) % 64
    return zoo.Plain(model, zoo._last).eval(), x


class FP32LayerNorm(nn.LayerNorm):
    """Of diffusers: in float32, whatever the dtype of the model."""

    def forward(self, inputs):
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        return F.layer_norm(inputs.float(), self.normalized_shape, weight, bias, self.eps).to(inputs.dtype)


class RMSNorm(nn.Module):
    """Of diffusers: the product in the dtype of the weight; without a weight, of any width."""

    def __init__(self, dim, eps, elementwise_affine=True, bias=False):
        super().__init__()
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.dim = torch.Size([dim])
        self.weight = nn.Parameter(torch.ones(dim)) if elementwise_affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if elementwise_affine and bias else None

    def forward(self, hidden_states):
        dtype = hidden_states.dtype
        variance = hidden_states.to(torch.float32).square().mean(-1, keepdim=True)
        y = hidden_states * torch.rsqrt(variance + self.eps)
        if self.weight is None:
            return y.to(dtype)
        y = (y.to(self.weight.dtype) if self.weight.dtype.itemsize == 2 else y) * self.weight
        return y if self.bias is None else y + self.bias


class AdaLayerNorm(nn.Module):
    """Of diffusers, with ``chunk_dim=1``."""

    def __init__(self, embedding_dim):
        super().__init__()
        self.silu, self.linear = nn.SiLU(), nn.Linear(embedding_dim, 2 * embedding_dim)
        self.norm = nn.LayerNorm(embedding_dim, 1e-5, False)

    def forward(self, x, timestep=None, temb=None):
        shift, scale = self.linear(self.silu(temb)).chunk(2, 1)
        return self.norm(x) * (1 + scale[:, None]) + shift[:, None]


class AdaLayerNormZero(nn.Module):
    """Of diffusers."""

    def __init__(self, embedding_dim, norm_type="layer_norm"):
        super().__init__()
        self.emb = None
        self.silu, self.linear = nn.SiLU(), nn.Linear(embedding_dim, 6 * embedding_dim)
        kind = nn.LayerNorm if norm_type == "layer_norm" else FP32LayerNorm
        self.norm = kind(embedding_dim, elementwise_affine=False, eps=1e-6)

    def forward(self, x, emb=None):
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.linear(self.silu(emb)).chunk(6, 1)
        x = self.norm(x) * (1 + scale_msa[:, None]) + shift_msa[:, None]
        return x, gate_msa, shift_mlp, scale_mlp, gate_mlp


class AdaLayerNormSingle(nn.Module):
    """Of diffusers: it has no norm."""

    def __init__(self, embedding_dim):
        super().__init__()
        self.silu, self.linear = nn.SiLU(), nn.Linear(embedding_dim, 6 * embedding_dim)

    def forward(self, timestep):
        return self.linear(self.silu(timestep)), timestep


class AdaLayerNormContinuous(nn.Module):
    """Of diffusers."""

    def __init__(self, embedding_dim, conditioning_embedding_dim, elementwise_affine=True, norm_type="layer_norm"):
        super().__init__()
        self.silu, self.linear = nn.SiLU(), nn.Linear(conditioning_embedding_dim, 2 * embedding_dim)
        kind = nn.LayerNorm if norm_type == "layer_norm" else RMSNorm
        self.norm = kind(embedding_dim, 1e-5, elementwise_affine)

    def forward(self, x, conditioning_embedding):
        scale, shift = self.linear(self.silu(conditioning_embedding).to(x.dtype)).chunk(2, 1)
        return self.norm(x) * (1 + scale[:, None]) + shift[:, None]


class OfDiffusers(nn.Module):
    """Blocks with every norm of diffusers; the condition is the mean of the tokens."""

    def __init__(self, size=16):
        super().__init__()
        self.norm1 = AdaLayerNormZero(size, "layer_norm")
        self.to_q, self.norm_q = nn.Linear(size, size), RMSNorm(size // 2, 1e-6)
        self.norm_k = RMSNorm(size // 2, 1e-6, elementwise_affine=False)
        self.norm2 = FP32LayerNorm(size, elementwise_affine=False, eps=1e-6)
        self.norm3 = AdaLayerNormZero(size, "fp32_layer_norm")
        self.adaln_single = AdaLayerNormSingle(size)
        self.norm_cross = FP32LayerNorm(size)
        self.norm4 = AdaLayerNorm(size)
        self.norm_out = AdaLayerNormContinuous(size, size, elementwise_affine=False)
        self.norm_rms = AdaLayerNormContinuous(size, size, norm_type="rms_norm")

    def forward(self, x):
        condition = x.mean(1)
        y, gate, shift, scale, gate_mlp = self.norm1(x, emb=condition)
        heads = self.to_q(y).unflatten(-1, (2, -1))
        x = x + gate[:, None] * (self.norm_q(heads) + self.norm_k(heads)).flatten(-2)
        x = x + gate_mlp[:, None] * (self.norm2(x) * (1 + scale[:, None]) + shift[:, None])
        x = x + self.norm3(x, emb=condition)[0] + self.adaln_single(condition)[0][:, None, :16]
        x = self.norm4(self.norm_cross(x), temb=condition)
        return self.norm_rms(self.norm_out(x, condition), condition)


class DiTBlock(nn.Module):
    """Of the paper's code: scale, shift and gate of two norms without weight from one linear layer."""

    def __init__(self, size=16):
        super().__init__()
        self.norm1 = nn.LayerNorm(size, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(size, elementwise_affine=False, eps=1e-6)
        self.attn, self.mlp = nn.Linear(size, size), nn.Sequential(nn.Linear(size, size), nn.GELU(approximate="tanh"))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(size, 6 * size))

    def forward(self, x):
        shift, scale, gate, shift2, scale2, gate2 = self.adaLN_modulation(x.mean(1, keepdim=True)).chunk(6, -1)
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


def _of_qwen():
    """The adaptive norms of the diffusion transformer in Qwen2.5-Omni."""
    names = ("Qwen2_5_OmniAdaLayerNormZero", "Qwen2_5_OmniAdaLayerNormZero_Final")
    return QwenBlock(*(norm_of("qwen2_5_omni", name, 16) for name in names))


class QwenBlock(nn.Module):
    """Both norms, with the mean of the tokens as their condition."""

    def __init__(self, attn_norm, norm_out):
        super().__init__()
        self.attn_norm, self.norm_out = attn_norm, norm_out

    def forward(self, x):
        y, gate, shift, scale, _ = self.attn_norm(x, emb=x.mean(1))
        return self.norm_out(x + gate[:, None] * y * scale[:, None] + shift[:, None], x.mean(1))


OTHERS = {"diffusers": OfDiffusers, "dit": DiTBlock, "qwen2_5_omni": _of_qwen}
