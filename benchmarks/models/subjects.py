"""The models, with random weights, and the cells of the benchmark."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from benchmarks.models.unet import UNet

CLASSES = 100
VOCABULARY = 512
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
"""The names of memory formats."""


@dataclass(frozen=True)
class Subject:
    """A model and its batch.

    Attributes:
        make: the model, in training mode.
        shape: of the input: images, or tokens in sequences.
        layouts: the memory formats to time.
        to_image: whether it makes an image of an image, and not one of the classes.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    layouts: tuple[str, ...] = ("contiguous",)
    to_image: bool = False

    def batch(self) -> tuple[Tensor, Tensor]:
        """Input and target: class numbers, the next tokens, or an image to predict."""
        if len(self.shape) == 2:
            tokens = torch.randint(VOCABULARY, (self.shape[0], self.shape[1] + 1))
            return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        x = torch.randn(self.shape)
        return x, torch.randn(self.shape) if self.to_image else torch.randint(CLASSES, self.shape[:1])


@dataclass(frozen=True)
class Cell:
    """One entry of the table."""

    model: str
    layout: str
    precision: str
    compiled: bool
    training: bool

    @property
    def name(self) -> str:
        """All of it in words."""
        how, what = "compiled" if self.compiled else "eager", "training" if self.training else "inference"
        return f"{self.model} {self.layout} {self.precision} {how} {what}"


def _timm(name: str, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = zoo._timm().create_model(name, num_classes=CLASSES, **options)
    return model


def _gpt2() -> nn.Module:
    zoo._torchvision()  # transformers imports it
    transformers = importlib.import_module("transformers")
    dropped = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), 0)
    sizes = {"vocab_size": VOCABULARY, "n_embd": 384, "n_layer": 3, "n_head": 6, "n_positions": 128}
    model: nn.Module = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, **dropped, **ends, use_cache=False)
    )
    return model


_BOTH = ("contiguous", "channels_last")
# In timm's networks the last scale of a branch is 0 or nearly so, and the model would show no error inside.
SUBJECTS = {
    "ResNet-18": Subject(lambda: _timm("resnet18", zero_init_last=False), (8, 3, 64, 64), _BOTH),
    "ConvNeXt-atto": Subject(lambda: _timm("convnext_atto", ls_init_value=1.0), (8, 3, 96, 96), _BOTH),
    "UNet": Subject(UNet, (2, 3, 32, 32), _BOTH, to_image=True),
    "ViT-tiny": Subject(lambda: _timm("vit_tiny_patch16_224", img_size=112, depth=6), (8, 3, 112, 112)),
    "GPT-2": Subject(_gpt2, (4, 64)),
}
"""Models of timm, one of transformers, and the UNet of this folder. The two transformers have fewer blocks than usual:
all blocks are alike, so their number hardly changes a ratio."""


def cells() -> Iterator[Cell]:
    """All cells. Compiled in float32 and one layout, for compiling takes most of the time of the benchmark."""
    for compiled in (False, True):
        for name, subject in SUBJECTS.items():
            for layout in subject.layouts[-1:] if compiled else subject.layouts:
                for precision in ("float32",) if compiled else ("float32", "bfloat16"):
                    for training in (True, False):
                        yield Cell(name, layout, precision, compiled, training)


def output(model: nn.Module, x: Tensor) -> Tensor:
    """The tensor among a model's outputs."""
    y: Any = model(x)
    return y if isinstance(y, Tensor) else y.logits  # type: ignore[no-any-return]


def loss(y: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of classes or tokens, mean squared error of an image; in float32, or float64 for such an output."""
    y = y if y.dtype == torch.float64 else y.float()
    if target.is_floating_point():
        return F.mse_loss(y, target.to(y.dtype))
    return F.cross_entropy(y.flatten(0, -2), target.flatten())
