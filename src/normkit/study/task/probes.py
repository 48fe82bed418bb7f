"""Measurements of a trained model other than its error."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn import functional as F

import normkit
from normkit.study.suite.networks import groups_of
from normkit.study.suite.transformers import Normed, Transformer


class OfImages:
    """Measures how much style affects a classifier, and how much an output depends on the rest of its batch.

    Args:
        images, labels: the test data.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Both measurements, for a model in evaluation mode."""
        return {"style_rise": self._style_rise(model), "batch_dependence": batch_dependence(model, self.images)}

    def _style_rise(self, model: nn.Module) -> float:
        """The increase of the error when each image gets a random contrast and brightness."""
        generator = torch.Generator().manual_seed(0)
        count = len(self.images)
        contrast = torch.empty(count, 1, 1, 1).uniform_(-1.1, 1.1, generator=generator).exp()
        brightness = torch.empty(count, 1, 1, 1).uniform_(-1, 1, generator=generator)
        changed, usual = (
            (model(images).argmax(1) != self.labels).double().mean()
            for images in (self.images * contrast + brightness, self.images)
        )
        return float(changed - usual)


@torch.no_grad()
def batch_dependence(model: nn.Module, images: Tensor) -> float:
    """The largest change of the output for one image when the other images of its batch change, in training mode.

    In units of the standard deviation of the outputs.
    """
    trained = copy.deepcopy(model).train()
    first = images[:1]
    outputs = torch.stack([trained(torch.cat([first, images[i : i + 7]]))[0] for i in range(1, 127, 7)])
    return float((outputs - outputs[0]).abs().max() / outputs.std().clamp(min=1e-12))


@torch.no_grad()
def of_statistics(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Batch dependence; the share of batch statistics in switchable norms; how far channels of a group are correlated.

    The last is the condition number of the covariance of the first norm's output before weight and bias, a geometric
    mean over the groups of channels that all experiments use.

    Args:
        model: a convolutional network of the suite.
        images: some images.
    """
    found = {"batch_dependence": batch_dependence(model, images)}
    mixed = [module for module in model.modules() if isinstance(module, normkit.SwitchableNorm)]
    if mixed:
        shares = torch.stack([w.softmax(0)[2] for norm in mixed for w in (norm.mean_weight, norm.var_weight)])
        found["batch_share"] = float(shares.mean())
    values: list[Tensor] = []
    trained = copy.deepcopy(model).train()
    for norm in trained.modules():
        if isinstance(norm, (normkit.BatchNorm2d, normkit.IterNorm)):
            assert norm.weight is not None
            nn.init.ones_(norm.weight)
            norm.register_forward_hook(lambda module, given, output: values.append(output))
    trained(images[:64])
    if values:
        channels = values[0].double().movedim(1, 0).flatten(1)
        groups = channels.unflatten(0, (groups_of(len(channels)), -1))
        spectra = torch.stack([torch.linalg.eigvalsh(torch.cov(group)) for group in groups]).clamp(min=1e-12)
        found["condition"] = float((spectra[:, -1] / spectra[:, 0]).log().mean().exp())
    return found


@torch.no_grad()
def channel_distance(model: nn.Module, images: Tensor) -> dict[str, float]:
    """How different the channels of an image are after each ReLU: the mean of (1 - cosine) / 2 over their pairs.

    A channel that is 0 everywhere has no direction; pairs with it are left out. Global response norm itself scales
    channels, which changes no cosine.

    Args:
        model: a sequence of layers.
        images: some images.
    """
    assert isinstance(model, nn.Sequential)
    distances = []
    values = images
    for layer in model:
        values = layer(values)
        if isinstance(layer, nn.ReLU):
            maps = values.flatten(2).double()
            alive = maps.norm(dim=2) > 0
            unit = F.normalize(maps, dim=2)
            pairs = (alive.unsqueeze(1) & alive.unsqueeze(2)).triu(1)
            distances.append((1 - unit @ unit.mT)[pairs].mean() / 2)
    return {"channel_distance": float(torch.stack(distances).mean())}


@torch.no_grad()
def value_dependence(model: nn.Module) -> dict[str, float]:
    """How much a norm's output for a value changes if another feature of its token changes by 3, in training mode.

    The largest change in any norm of the model, in units of the standard deviation of its outputs.
    """
    assert isinstance(model, Transformer)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(8, 16, model.table.embedding_dim, generator=generator)
    changed = tokens.clone()
    changed[..., 0] += 3
    largest = 0.0
    for module in copy.deepcopy(model).train().modules():
        if isinstance(module, Normed) and module.norm is not None:
            before, after = copy.deepcopy(module)(tokens), module(changed)
            change = (after - before)[..., 1:].abs().max() / before.std().clamp(min=1e-12)
            largest = max(largest, float(change))
    return {"value_dependence": largest}


@torch.no_grad()
def steepness(model: nn.Module, images: Tensor) -> dict[str, float]:
    """The largest singular value of any weight but the last layer's, and the largest slope of the network before it.

    The slope at an image is the largest singular value of the derivative of the outputs with respect to its pixels.

    Args:
        model: a sequence of layers that ends with a linear one.
        images: some images.
    """
    assert isinstance(model, nn.Sequential)
    body = nn.Sequential(*list(model)[:-1])
    linear = [layer for layer in body if isinstance(layer, nn.Linear)]
    values = [torch.linalg.matrix_norm(layer.weight.double(), 2) for layer in linear]
    slopes = vmap(jacrev(lambda image: body(image.unsqueeze(0))[0]))(images).flatten(2)
    return {
        "singular_value": float(torch.stack(values).max()),
        "slope": float(torch.linalg.matrix_norm(slopes.double(), 2).max()),
    }


@torch.no_grad()
def relative_error(model: nn.Module, window: Tensor, target: Tensor) -> dict[str, float]:
    """The mean squared error of a forecast as a fraction of the variance of what is forecast.

    Args:
        model: the network.
        window, target: the inputs and what follows them.
    """
    return {"relative_error": float(F.mse_loss(model(window), target) / target.var())}
