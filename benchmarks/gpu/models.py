"""Whole models with random weights: torch's norms against those that `normkit.convert` puts in their place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit
from benchmarks.gpu.clock import Clock, wall_times
from benchmarks.gpu.layers import reason, where, working
from benchmarks.speed.measure import Call


class Attention(nn.Module):
    """Causal attention of a Llama block, without rotation: it would only add time to both sides."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return y


class Block(nn.Module):
    """One block of a Llama: RMS norm, attention, RMS norm, gated feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width, 1e-6), nn.RMSNorm(width, 1e-6)
        self.attention = Attention(width, heads)
        self.gate, self.up = (nn.Linear(width, 8 * width // 3, bias=False) for _ in range(2))
        self.down = nn.Linear(8 * width // 3, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        z = self.norm2(x)
        y: Tensor = x + self.down(F.silu(self.gate(z)) * self.up(z))
        return y


def llama(blocks: int, width: int, heads: int) -> nn.Module:
    return nn.Sequential(*(Block(width, heads) for _ in range(blocks)), nn.RMSNorm(width, 1e-6))


def small_images(norm: Callable[[int], nn.Module]) -> nn.Module:
    """A network of images for a dry run."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3), norm(8))


def _timm(name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, num_classes=100)
    return model


@dataclass(frozen=True)
class Subject:
    """A model, its input, and what takes their place in a dry run."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tiny: Callable[[], nn.Module]
    tiny_shape: tuple[int, ...]
    channels_last: bool = False


_IMAGE, _TINY = (64, 3, 224, 224), (2, 3, 12, 12)
SUBJECTS = {
    "ViT-S": Subject(
        lambda: _timm("vit_small_patch16_224"), _IMAGE, lambda: nn.Sequential(nn.Flatten(2), nn.LayerNorm(144)), _TINY
    ),
    "Llama 8 x 1024": Subject(lambda: llama(8, 1024, 16), (8, 1024, 1024), lambda: llama(1, 12, 2), (2, 5, 12)),
    "ConvNeXt-T": Subject(
        lambda: _timm("convnext_tiny"), _IMAGE, lambda: small_images(lambda c: nn.GroupNorm(1, c)), _TINY, True
    ),
    "ResNet-50 channels_last": Subject(
        lambda: _timm("resnet50"), _IMAGE, lambda: small_images(nn.BatchNorm2d), _TINY, True
    ),
    "ResNet-50 contiguous": Subject(lambda: _timm("resnet50"), _IMAGE, lambda: small_images(nn.BatchNorm2d), _TINY),
}
"""The first are the quickest to compile."""


def prepared(subject: Subject, gpu: bool) -> tuple[nn.Module, Tensor]:
    """The model as it is, and its input."""
    torch.manual_seed(0)
    make, shape = (subject.make, subject.shape) if gpu else (subject.tiny, subject.tiny_shape)
    with where(gpu):
        model, x = make(), torch.randn(shape)
    if subject.channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    if x.dim() == 3:  # language models train in bfloat16, networks of images by autocast
        model, x = model.bfloat16(), x.bfloat16()
    return model, x


def _autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.float32)


def training(model: nn.Module, x: Tensor) -> Call:
    """Forward and backward; an optimizer would add the same to both sides."""
    model.train()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with _autocast(x):
            loss = model(x).float().square().mean()
        loss.backward()

    return step


def inference(model: nn.Module, x: Tensor) -> Call:
    model.eval()

    def infer() -> None:
        with torch.no_grad(), _autocast(x):
            model(x)

    return infer


def measured(name: str, clock: Clock, compiled: bool, gpu: bool, seconds: float = 1.0) -> dict[str, Any]:
    """Milliseconds of a training step and of inference, of torch's norms and normkit's; or why there are none."""
    row: dict[str, Any] = {"name": name, "compiled": compiled, "milliseconds": {}, "norms": None}
    row |= {"failed": None, "note": None}
    try:
        torch.compiler.reset()
        model, x = prepared(SUBJECTS[name], gpu)
    except Exception as error:  # normkit has no part in it: a package is missing, or torch fails
        return {**row, "note": f"left out: {reason(error)}"}
    try:
        converted, report = normkit.convert(model)
        row["norms"] = len(report.changes)
        models = {"torch": model, "normkit": converted}
        if compiled:
            models = {who: torch.compile(model, dynamic=False) for who, model in models.items()}
        for what, make in (("training", training), ("inference", inference)):
            calls = {who: make(model, x) for who, model in models.items()}
            _, row["note"] = working({"torch": calls["torch"]})
            if row["note"]:  # nothing to compare with
                break
            times = wall_times(calls, seconds, clock)
            row["milliseconds"][what] = {who: t.median for who, t in times.items()}
    except Exception as error:  # a model that fails is a row, not the end
        row["failed"] = reason(error)
    return row
