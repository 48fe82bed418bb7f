"""A small UNet in the form of those of diffusion models: residual blocks of group norm, SiLU and convolution."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Twice group norm, SiLU and convolution, around which the input is added."""

    def __init__(self, inputs: int, outputs: int, groups: int = 32) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, inputs), nn.GroupNorm(groups, outputs)
        self.act = nn.SiLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.act(self.norm1(x)))
        y = self.conv2(self.act(self.norm2(y)))
        total: Tensor = self.skip(x) + y
        return total


class UNet(nn.Module):
    """Predicts an image from an image: one block for each resolution on the way down, one on the way up.

    It has no attention and no embedding of the time, which would only add time to all contestants.
    """

    def __init__(self, width: int = 64, levels: int = 3) -> None:
        super().__init__()
        widths = [width << level for level in range(levels)]
        pairs = list(pairwise(widths))
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(Block(width, width) for width in widths)
        self.smaller = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.up = nn.ModuleList(Block(a + b, a) for a, b in reversed(pairs))
        self.norm, self.act = nn.GroupNorm(32, width), nn.SiLU()
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        kept = []
        for block, smaller in zip(self.down, self.smaller, strict=False):
            kept.append(block(y))
            y = smaller(kept[-1])
        y = self.down[-1](y)
        for block in self.up:
            y = block(torch.cat((F.interpolate(y, scale_factor=2.0), kept.pop()), dim=1))
        image: Tensor = self.last(self.act(self.norm(y)))
        return image
