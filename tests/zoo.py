"""Models that nobody here wrote, with random weights: small members of timm's and transformers' families."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")

IMAGES: Mapping[str, dict[str, Any]] = {
    "resnet10t": {},
    "resnet18": {},
    "resnet50": {},
    "resnext26ts": {},
    "seresnet18": {},
    "resnetv2_50": {},
    "densenet121": {},
    "vgg11_bn": {},
    "mobilenetv2_035": {},
    "mobilenetv3_small_050": {},
    "efficientnet_b0": {},
    "efficientnet_lite0": {},
    "mixnet_s": {},
    "mnasnet_small": {},
    "ghostnet_050": {},
    "regnetx_002": {},
    "regnety_002": {},
    "convnext_atto": {},
    "convnextv2_atto": {},
    "nfnet_l0": {},
    "dm_nfnet_f0": {},
    "vit_tiny_patch16_224": {"img_size": 64},
    "deit_tiny_patch16_224": {"img_size": 64},
    "swin_tiny_patch4_window7_224": {"img_size": 56},
    "poolformer_s12": {},
    "mixer_s32_224": {},
    "levit_128s": {"img_size": 64},
    "edgenext_xx_small": {},
    "repvgg_a0": {},
    "dla34": {},
    "hrnet_w18_small": {},
    "inception_v3": {},
    "xception41": {},
    "darknet53": {},
    "pit_ti_224": {},
    "volo_d1_224": {},
    "cait_xxs24_224": {},
}
"""timm's models and how small each is made."""

TEXT = (
    "bert",
    "gpt2",
    "llama",
    "t5",
    "mamba",
    "roberta",
    "distilbert",
    "gpt_neox",
    "qwen2",
    "gemma",
    "mistral",
    "albert",
)
SOUND = ("wav2vec2",)


@functools.cache
def _torchvision() -> torch.library.Library | None:
    """Declares what torchvision's compiled half would where it does not fit this torch: timm imports the rest."""
    with contextlib.suppress(RuntimeError):  # operator torchvision::nms does not exist
        importlib.import_module("torchvision")
        return None
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _timm() -> Any:
    _torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm

    return timm


def image_model(name: str, **changes: Any) -> tuple[nn.Module, Tensor]:
    """A model of timm's in evaluation mode, and an example of its input."""
    options = dict(IMAGES.get(name, {})) | changes
    size = options.get("img_size", 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = _timm().create_model(name, pretrained=False, num_classes=10, **options)
    fixed = getattr(model, "default_cfg", {}).get("fixed_input_size", False)
    if fixed and "img_size" not in options:
        size = model.default_cfg["input_size"][-1]
    elif name == "inception_v3":
        size = 96
    return model.eval(), torch.randn(2, 3, size, size)


def _small(kind: str) -> dict[str, Any]:
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "gpt2":
        return {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    if kind == "t5":
        return {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    if kind == "distilbert":
        return {"vocab_size": 64, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
    if kind == "mamba":
        return {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    if kind == "wav2vec2":
        return sizes | {
            "intermediate_size": 64,
            "conv_dim": (16, 16),
            "conv_kernel": (10, 3),
            "conv_stride": (5, 2),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        }
    if kind in {"llama", "qwen2", "mistral", "gemma"}:
        return sizes | {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
    return sizes | {"intermediate_size": 64} | ({"embedding_size": 16} if kind == "albert" else {})


class Plain(nn.Module):
    """A model of transformers' that takes and gives one tensor."""

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self.model, x)


def _last(model: Any, x: Tensor) -> Tensor:
    hidden: Tensor = model(x).last_hidden_state
    return hidden


def _last_t5(model: Any, x: Tensor) -> Tensor:
    hidden: Tensor = model(input_ids=x, decoder_input_ids=x).last_hidden_state
    return hidden


def language_model(kind: str) -> tuple[nn.Module, Tensor]:
    """A small model of transformers' in evaluation mode, and an example of its input."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _torchvision()
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.for_model(kind, **_small(kind))
        model = AutoModel.from_config(config)
    x = torch.randn(2, 800) if kind in SOUND else torch.arange(24).reshape(2, 12) % 64
    return Plain(model, _last_t5 if kind == "t5" else _last).eval(), x
