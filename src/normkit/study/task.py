"""What is trained: data in three parts that never meet, and a network in which only the normalization varies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import normkit
from normkit import catalog
from normkit.errors import ArgumentError, nearest

CHANNELS = ((16, 1), (16, 2), (32, 2), (32, 1))
"""Output channels and stride of each convolution; the last two work on 2x2 positions."""

GROUPS = 4
NOISE = 0.2
PARTS = (600, 400, 797)


@dataclass(frozen=True)
class Split:
    """Inputs and labels that are used for one purpose only."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Task:
    """A model to be trained under several normalizations, and the data to do it on.

    Attributes:
        name, description: for the report; the name stands in the answer.
        train, validation, test: weights, learning rate and result each come from a part of their own.
        build: (method, seed) -> a fresh model; equal seeds give equal convolution and linear weights
            under every method. A function of a module, so that a worker process can import it.
        classes: number of labels.
    """

    name: str
    description: str
    train: Split
    validation: Split
    test: Split
    build: Callable[[str, int], nn.Module]
    classes: int

    @property
    def chance(self) -> float:
        """The error of guessing; what a run that breaks off is charged with."""
        return 1 - 1 / self.classes

    def fingerprint(self) -> str:
        """Changes when the data or the text of the task does."""
        digest = hashlib.sha256(f"{self.name} {self.description} {self.build.__qualname__}".encode())
        for part in (self.train, self.validation, self.test):
            digest.update(part.inputs.numpy().tobytes() + part.labels.numpy().tobytes())
        return digest.hexdigest()[:16]


def digits(seed: int = 0) -> Task:
    """scikit-learn's 1797 handwritten digits of 8x8 pixels, made harder by noise.

    Without the noise every method classifies nearly all digits and nothing can be compared. The noise is
    part of the data set: an image looks the same each time it is seen.

    Args:
        seed: of the noise and of the split.

    >>> task = digits()
    >>> [len(part) for part in (task.train, task.validation, task.test)]
    [600, 400, 797]
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    inputs = inputs + NOISE * torch.randn(inputs.shape, generator=generator)
    order = torch.randperm(len(inputs), generator=generator)
    train, validation, test = (Split(inputs[index], torch.as_tensor(labels)[index]) for index in order.split(PARTS))
    mean, std = train.inputs.mean(), train.inputs.std()
    train, validation, test = (Split((s.inputs - mean) / std, s.labels) for s in (train, validation, test))
    return Task(
        name="noisy 8x8 digits",
        description=(
            f"scikit-learn digits, 8x8 pixels, 10 classes, Gaussian pixel noise {NOISE:g} of the pixel range; "
            f"{PARTS[0]} images to train, {PARTS[1]} to choose the learning rate, {PARTS[2]} to test. "
            f"{len(CHANNELS)} convolutions 3x3 with {', '.join(str(c) for c, _ in CHANNELS)} channels "
            f"(strides {', '.join(str(s) for _, s in CHANNELS)}), each followed by the norm and a ReLU, "
            "then the mean over the 2x2 positions left and a linear layer. Layer norm covers all channels and "
            f"positions of an image, group norm has {GROUPS} groups, weight norm starts from the weights all others "
            "start from."
        ),
        train=train,
        validation=validation,
        test=test,
        build=convnet,
        classes=10,
    )


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch_norm": normkit.BatchNorm2d,
    "layer_norm": lambda channels: normkit.Norm("b [c ...]", num_features=channels),
    "instance_norm": lambda channels: normkit.InstanceNorm2d(channels, affine=True),
    "group_norm": lambda channels: normkit.GroupNorm(GROUPS, channels),
}
_PLAIN = ("none", "weight_norm")
"""Nothing stands behind the convolution, so it keeps its bias; the others centre and add a bias of their own."""


def method_name(name: str) -> str:
    """The one name of a method that `convnet` can build, from a name or alias.

    >>> method_name("BN")
    'batch_norm'
    """
    known = (*_PLAIN, *_NORMS)
    found = "none" if name == "none" else catalog.find(name).name
    if found not in known:
        raise ArgumentError(f"compare trains {', '.join(known)}, got {name!r}: {nearest(found, known)}")
    return found


def convnet(method: str, seed: int) -> nn.Sequential:
    """A small convolutional network; the norm stands after each convolution and before its ReLU.

    Args:
        method: "none" or the name of a method.
        seed: of the weights: He-normal, biases 0.

    >>> plain, normed = convnet("none", 1), convnet("group_norm", 1)
    >>> torch.equal(plain[0].weight, normed[0].weight), plain[0].bias is None, normed[0].bias is None
    (True, False, True)
    """
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    before = 1
    # Constructors draw weights that are overwritten below; the caller's random state must not notice.
    with torch.random.fork_rng(devices=[]):
        for channels, stride in CHANNELS:
            conv = nn.Conv2d(before, channels, 3, stride, padding=1, bias=method in _PLAIN)
            _start(conv, generator)
            layers.append(normkit.weight_norm(conv) if method == "weight_norm" else conv)
            if method in _NORMS:
                layers.append(_NORMS[method](channels))
            layers.append(nn.ReLU())
            before = channels
        head = nn.Linear(before, 10)
    _start(head, generator)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def _start(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
