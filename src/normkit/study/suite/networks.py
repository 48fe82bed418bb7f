"""The networks of the built-in suite, each for any variant: a method, or a method with an option such as ``ghost-4``.

A variant is written ``method[:option]``; each network documents its options. Equal seeds give equal weights of
convolutions and linear layers with every variant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

import normkit
from normkit import catalog
from normkit.errors import ArgumentError

WARMUP = 50
"""Batches of power norm's warm-up; the default of its layer is longer than these trainings."""
NORM_BESIDE = {"global_response_norm": "layer_norm2d"}
"""A method that follows an activation, and the norm before that activation, as its paper uses them together."""
UNFIT = {
    "unchanged": "these networks have no norms of their own",
    "revin": "it normalizes the series of a window and takes a forecast back to their scale",
    "scale_norm": "it divides the features of a token, which are the last dimension, and here the channels come first",
}
"""Why a method has no layer in a network of this suite, where its region does not tell."""


def keeps_bias(method: str) -> bool:
    """Whether a layer keeps its bias: no norm follows it, or one that does not subtract the mean.

    >>> keeps_bias("none"), keeps_bias("batch_norm"), keeps_bias("dynamic_tanh")
    (True, False, True)
    """
    method = NORM_BESIDE.get(method, method)
    return method == "none" or catalog.find(method).of_weights or not catalog.find(method).center


def activates(method: str) -> bool:
    """Whether a method is an activation as well, so that no ReLU follows it."""
    return method != "none" and catalog.find(method).activates


def groups_of(channels: int) -> int:
    """The number of groups in all experiments that do not vary it."""
    return min(4, channels)


def norm_of(variant: str, channels: int, dims: int) -> nn.Module | None:
    """The norm of a variant for `channels` channels with `dims` dimensions of positions, or None.

    >>> norm_of("group_norm:8", 16, 2), norm_of("batch_norm:ghost-4", 16, 2)
    (GroupNorm(8, 16, eps=1e-05, affine=True, bias=True), GhostBatchNorm2d(16, eps=1e-05, momentum=0.1, affine=True, \
bias=True, track_running_stats=True, virtual_batch_size=4))
    """
    method, _, option = variant.partition(":")
    match NORM_BESIDE.get(method, method) if dims else method:
        case "batch_norm" if option.startswith("ghost-"):
            ghost = {0: normkit.GhostBatchNorm1d, 2: normkit.GhostBatchNorm2d}[dims]
            return ghost(channels, int(option.removeprefix("ghost-")))
        case "batch_norm":
            return normkit.BatchNorm2d(channels) if dims else normkit.BatchNorm1d(channels)
        case "layer_norm":
            return normkit.Norm("b [c ...]", num_features=channels) if dims else normkit.LayerNorm(channels)
        case "instance_norm" if dims:
            return normkit.InstanceNorm2d(channels, affine=True)
        case "group_norm":
            return normkit.GroupNorm(int(option) if option.isdecimal() else groups_of(channels), channels)
        case "rms_norm":
            return normkit.Norm("b [c] ...", num_features=channels, center=False) if dims else normkit.RMSNorm(channels)
        case "layer_norm2d":
            return normkit.LayerNorm2d(channels) if dims else normkit.LayerNorm(channels)
        case "filter_response_norm" if dims:
            return normkit.FilterResponseNorm2d(channels)
        case "scale_norm" if not dims:
            return normkit.ScaleNorm(channels)
        case "dynamic_tanh" | "dynamic_erf":
            bounded = normkit.DynamicTanh if method == "dynamic_tanh" else normkit.DynamicErf
            return bounded(channels, channels_last=not dims)
        case "evo_norm_b0" if dims:
            return normkit.EvoNorm2dB0(channels)
        case "evo_norm_s0" if dims:
            return normkit.EvoNorm2dS0(channels, int(option) if option.isdecimal() else groups_of(channels))
        case "switchable_norm" if dims:
            return normkit.SwitchableNorm(channels)
        case "power_norm":
            return normkit.PowerNorm(channels, warmup_iters=WARMUP)
        case "iter_norm":
            return normkit.IterNorm(channels, num_groups=groups_of(channels))
        case "none" | "weight_norm" | "weight_standardization" | "spectral_norm":
            return None
    why = UNFIT.get(method) or "its statistics cover positions, and these features have none"
    if method not in UNFIT:
        catalog.find(method)  # an unknown name is another error
    raise ArgumentError(f"{method} does not fit into this network ({why}): leave it out")


def fits_images(method: str) -> bool:
    """Whether `convnet` has a variant for a method.

    >>> fits_images("evo_norm_s0"), fits_images("scale_norm")
    (True, False)
    """
    try:
        norm_of(method, 4, 2)
    except ArgumentError:
        return False
    return True


def with_norm_of_weights(layer: nn.Module, method: str) -> nn.Module:
    """The layer, with this method on its weight if it is one of weights."""
    if method == "none" or not catalog.find(method).of_weights:
        return layer
    normed: nn.Module = getattr(normkit, method)(layer)
    return normed


def initialize(layer: nn.Module, generator: torch.Generator) -> None:
    """He-normal weights, and a bias of 0."""
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def convnet(
    variant: str,
    seed: int,
    *,
    channels: tuple[tuple[int, int], ...],
    classes: int = 10,
    after: bool = False,
    last_norm: bool = False,
    padding: Literal["zeros", "replicate"] = "zeros",
) -> nn.Sequential:
    """3x3 convolutions with ReLU, the mean over the remaining positions, a linear layer.

    Args:
        variant: ``none``, a norm of weights, or a norm between each convolution and its ReLU, of which a method that
            is an activation as well takes the place, too; global response norm follows the ReLU, with a layer norm
            before it. With the option ``dropout-0.1`` that fraction of the maps is dropped after the ReLU.
        seed: seed of the weights.
        channels: output channels and stride of each convolution.
        classes: number of outputs.
        after: whether the norm follows the ReLU instead.
        last_norm: whether a further norm comes before the mean over positions.
        padding: the values around an image.

    >>> plain, normed = (convnet(name, 1, channels=((4, 1),)) for name in ("none", "group_norm"))
    >>> torch.equal(plain[0].weight, normed[0].weight), plain[0].bias is None, normed[0].bias is None
    (True, False, True)
    """
    generator = torch.Generator().manual_seed(seed)
    method, _, option = variant.partition(":")
    layers: list[nn.Module] = []
    before = 1
    # Constructors draw weights that are overwritten below; the caller's random state must not change.
    with torch.random.fork_rng(devices=[]):
        for width, stride in channels:
            # A norm after the ReLU does not cancel the bias of the convolution.
            bias = keeps_bias(method) or after
            conv = nn.Conv2d(before, width, 3, stride, padding=1, bias=bias, padding_mode=padding)
            initialize(conv, generator)
            layers.append(with_norm_of_weights(conv, method))
            norm = norm_of(variant.partition(":dropout")[0], width, 2)
            relu = None if activates(method) else nn.ReLU()
            layers += [part for part in ((relu, norm) if after else (norm, relu)) if part is not None]
            if method == "global_response_norm":
                layers.append(normkit.GlobalResponseNorm(width))
            if option.startswith("dropout-"):
                layers.append(nn.Dropout2d(float(option.removeprefix("dropout-"))))
            before = width
        if last_norm and (last := norm_of(variant, before, 2)) is not None:
            layers.append(last)
        head = nn.Linear(before, classes)
    initialize(head, generator)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def mlp(variant: str, seed: int, *, inputs: int, width: int, depth: int, classes: int = 10) -> nn.Sequential:
    """Linear layers with a norm before each ReLU. There are no positions, so a statistic covers one batch of values."""
    generator = torch.Generator().manual_seed(seed)
    method = variant.partition(":")[0]
    layers: list[nn.Module] = [nn.Flatten()]
    before = inputs
    with torch.random.fork_rng(devices=[]):
        for _ in range(depth):
            linear = nn.Linear(before, width, bias=keeps_bias(method))
            initialize(linear, generator)
            layers.append(with_norm_of_weights(linear, method))
            norm = norm_of(variant, width, 0)
            layers += [norm, nn.ReLU()] if norm is not None else [nn.ReLU()]
            before = width
        head = nn.Linear(before, classes)
    initialize(head, generator)
    return nn.Sequential(*layers, head)


Builder = Callable[[str, int], nn.Module]
"""(variant, seed) -> model."""


def with_placement(variant: str, seed: int, *, channels: tuple[tuple[int, int], ...], images: Tensor) -> nn.Sequential:
    """A `convnet` whose options choose the positions of its norms and the initialization of its weights.

    Args:
        variant: ``method:after`` puts the norms after the ReLU, ``method:last`` adds a norm before the mean over
            positions, ``method:init`` calls `initialize_by_data`.
        seed: seed of the weights.
        channels: as in `convnet`.
        images: the images for `initialize_by_data`.
    """
    method, _, option = variant.partition(":")
    net = convnet(method, seed, channels=channels, after=option == "after", last_norm=option == "last")
    if option == "init":
        initialize_by_data(net, images)
    return net


@torch.no_grad()
def initialize_by_data(net: nn.Sequential, images: Tensor) -> None:
    """Scale and shift each convolution so that its outputs have mean 0 and variance 1 on these images.

    This is the data-dependent initialization of weight norm, also for plain weights, to compare them.
    """
    values = images
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            out = layer(values)
            mean, std = out.mean((0, 2, 3)), out.std((0, 2, 3)).clamp(min=1e-6)
            # Under weight norm the length of the weight is a separate parameter.
            parts: Any = getattr(layer, "parametrizations", None)
            if parts is not None:
                parts.weight.original0.div_(std.view_as(parts.weight.original0))
            else:
                layer.weight.div_(std.view(-1, 1, 1, 1))
            assert layer.bias is not None
            layer.bias.copy_((layer.bias - mean) / std)
        values = layer(values)
