"""A small network for style transfer, and its loss: the content of a photograph in the textures of another picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.study.suite.networks import initialize, norm_of


class Stylizer(nn.Module):
    """Four convolutions from image to image; a norm between each of the first three and its ReLU."""

    def __init__(self, variant: str, seed: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        before = 3
        with torch.random.fork_rng(devices=[]):
            for _ in range(3):
                conv = nn.Conv2d(before, width, 3, padding=1, padding_mode="reflect")
                initialize(conv, generator)
                norm = norm_of(variant, width, 2)
                layers += [conv, norm, nn.ReLU()] if norm is not None else [conv, nn.ReLU()]
                before = width
            last = nn.Conv2d(before, 3, 3, padding=1, padding_mode="reflect")
        initialize(last, generator)
        self.body = nn.Sequential(*layers, last)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 3, H, W)."""
        out: Tensor = self.body(images)
        return out


class StyleLoss:
    """The distance of images from a style and from their content.

    Style: squared differences of the Gram matrices of the outputs of random filters. Content: squared differences of
    the images, both averaged over 4x4 positions. No pretrained network is needed.

    Args:
        style: (M, 3, H, W), patches of the style.
        seed: seed of the filters.
        weight: weight of the style relative to the content.
    """

    def __init__(self, style: Tensor, seed: int = 0, weight: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.filters = torch.randn(32, 3, 5, 5, generator=generator) / 75**0.5
        self.weight = weight
        self.target = self._gram(style).mean(0)

    def _gram(self, images: Tensor) -> Tensor:
        outputs = F.relu(F.conv2d(images, self.filters)).flatten(2)
        return outputs @ outputs.transpose(1, 2) / outputs.shape[-1]

    def __call__(self, images: Tensor, content: Tensor) -> Tensor:
        """The loss of a batch: images of shape (N, 3, H, W), and the images they were made from."""
        style = (self._gram(images) - self.target).square().sum((1, 2)) / self.target.square().sum()
        kept = (F.avg_pool2d(images, 4) - F.avg_pool2d(content, 4)).square().mean((1, 2, 3))
        return (self.weight * style + kept).mean()
