"""What is asked of a trained model beside its error."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from normkit.study.task import wrong


class OfImages:
    """How a classifier takes a change of style, and how far it takes one image by its company.

    Args:
        images, labels: of the test.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Numbers of a model in evaluation mode."""
        return {"style_rise": self._style_rise(model), "company": self._company(model)}

    def _style_rise(self, model: nn.Module) -> float:
        """How many more errors there are when each image has a contrast and a brightness of its own."""
        generator = torch.Generator().manual_seed(0)
        count = len(self.images)
        contrast = torch.empty(count, 1, 1, 1).uniform_(-1.1, 1.1, generator=generator).exp()
        brightness = torch.empty(count, 1, 1, 1).uniform_(-1, 1, generator=generator)
        changed = wrong(model(self.images * contrast + brightness), self.labels)
        return float(changed - wrong(model(self.images), self.labels))

    def _company(self, model: nn.Module) -> float:
        """The largest change of an image's output when other images stand in its batch, in training mode.

        In parts of the outputs' spread. A batch of two is the smallest in which all methods compute.
        """
        trial = copy.deepcopy(model).train()
        first = self.images[:1]
        outputs = torch.stack([trial(torch.cat([first, self.images[i : i + 7]]))[0] for i in range(1, 127, 7)])
        return float((outputs - outputs[0]).abs().max() / outputs.std().clamp(min=1e-12))


def rounded(value: float) -> float:
    """A number as a power of ten, for differences that may be 0 but for rounding."""
    return math.log10(max(value, 1e-12))


Probe = Callable[[nn.Module], dict[str, float]]
