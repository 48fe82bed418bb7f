"""A small stylizer, and what it is to learn: the colours of a photograph in the textures of another picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.study.nets import norm_of, started


class Stylizer(nn.Module):
    """Four convolutions from image to image; the norm stands after the first three and before their ReLU."""

    def __init__(self, arm: str, seed: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        before = 3
        with torch.random.fork_rng(devices=[]):
            for _ in range(3):
                conv = nn.Conv2d(before, width, 3, padding=1, padding_mode="reflect")
                started(conv, generator)
                norm = norm_of(arm, width, 2)
                layers += [conv, norm, nn.ReLU()] if norm is not None else [conv, nn.ReLU()]
                before = width
            last = nn.Conv2d(before, 3, 3, padding=1, padding_mode="reflect")
        started(last, generator)
        self.body = nn.Sequential(*layers, last)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 3, H, W)."""
        out: Tensor = self.body(images)
        return out


class StyleLoss:
    """How far images are from a style, and from their content.

    Style: mean squares of the differences of Gram matrices of random filters' answers; content: of the images, both
    averaged over 4x4 positions. No network that was trained elsewhere is needed.

    Args:
        style: (M, 3, H, W), patches of the style.
        seed: of the filters.
        weight: of the style beside the content.
    """

    def __init__(self, style: Tensor, seed: int = 0, weight: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.filters = torch.randn(32, 3, 5, 5, generator=generator) / 75**0.5
        self.weight = weight
        self.target = self._gram(style).mean(0)

    def _gram(self, images: Tensor) -> Tensor:
        answers = F.relu(F.conv2d(images, self.filters)).flatten(2)
        return answers @ answers.transpose(1, 2) / answers.shape[-1]

    def __call__(self, images: Tensor, content: Tensor) -> Tensor:
        """A number for a batch: (N, 3, H, W) and the images it was made from."""
        style = (self._gram(images) - self.target).square().sum((1, 2)) / self.target.square().sum()
        kept = (F.avg_pool2d(images, 4) - F.avg_pool2d(content, 4)).square().mean((1, 2, 3))
        return (self.weight * style + kept).mean()
