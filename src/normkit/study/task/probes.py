"""Measurements of a trained model other than its error."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from normkit.study.task.task import wrong


class OfImages:
    """Measures how much style affects a classifier, and how much an output depends on the rest of its batch.

    Args:
        images, labels: the test data.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Both measurements, for a model in evaluation mode."""
        return {"style_rise": self._style_rise(model), "batch_dependence": self._batch_dependence(model)}

    def _style_rise(self, model: nn.Module) -> float:
        """The increase of the error when each image gets a random contrast and brightness."""
        generator = torch.Generator().manual_seed(0)
        count = len(self.images)
        contrast = torch.empty(count, 1, 1, 1).uniform_(-1.1, 1.1, generator=generator).exp()
        brightness = torch.empty(count, 1, 1, 1).uniform_(-1, 1, generator=generator)
        changed = wrong(model(self.images * contrast + brightness), self.labels)
        return float(changed - wrong(model(self.images), self.labels))

    def _batch_dependence(self, model: nn.Module) -> float:
        """The largest change of the output for one image when the other images of its batch change, in training mode.

        In units of the standard deviation of the outputs.
        """
        trained = copy.deepcopy(model).train()
        first = self.images[:1]
        outputs = torch.stack([trained(torch.cat([first, self.images[i : i + 7]]))[0] for i in range(1, 127, 7)])
        return float((outputs - outputs[0]).abs().max() / outputs.std().clamp(min=1e-12))
