"""The default task of `compare`: noisy digits and a small convolutional network."""

from __future__ import annotations

from functools import partial

from normkit import catalog
from normkit.catalog import Text
from normkit.study.suite import data, networks
from normkit.study.task.probes import OfImages
from normkit.study.task.task import Task

CHANNELS = ((16, 1), (16, 2), (32, 2), (32, 1))
"""Output channels and stride of each convolution; the last two work on 2x2 positions."""

NAME = Text("noisy 8x8 digits", "带噪声的 8×8 手写数字")
GROUPS = 4
NOISE = 0.2
PARTS = (600, 400, 797)
METHODS = ("none", *(method.name for method in catalog.METHODS if method.compared))
"""The methods that are compared unless others are named."""
_OTHERS = [method.name for method in catalog.METHODS if method.mark and not method.compared]
BUILDABLE = (*METHODS, *filter(networks.fits_images, _OTHERS))
"""The methods that this network can be built with."""


def digits(seed: int = 0) -> Task:
    """scikit-learn's digits with noise, and the network of the comparison.

    Args:
        seed: seed of the noise and of the split.

    >>> task = digits()
    >>> [len(part) for part in (task.train, task.validation, task.test)]
    [600, 400, 797]
    """
    train, validation, test = data.digits(PARTS, NOISE, seed)
    return Task(
        model=None,
        train=train,
        validation=validation,
        test=test,
        arms=partial(networks.convnet, channels=CHANNELS),
        probe=OfImages(*test),
        name=NAME,
        description=Text(
            f"scikit-learn digits, 8x8 pixels, 10 classes, Gaussian pixel noise {NOISE:g} of the pixel range; "
            f"{PARTS[0]} images to train, {PARTS[1]} to choose the learning rate, {PARTS[2]} to test. "
            f"{len(CHANNELS)} convolutions 3x3 with {', '.join(str(c) for c, _ in CHANNELS)} channels "
            f"(strides {', '.join(str(s) for _, s in CHANNELS)}), each followed by the norm and a ReLU, "
            "then the mean over the 2x2 positions left and a linear layer. Layer norm covers all channels and "
            f"positions of an image, group norm has {GROUPS} groups, weight norm starts from the weights all others "
            "start from. SGD with momentum 0.9.",
            f"scikit-learn 手写数字，8×8 像素，10 类，像素高斯噪声为像素范围的 {NOISE:g}；{PARTS[0]} 张用于训练，"
            f"{PARTS[1]} 张用于选择学习率，{PARTS[2]} 张用于测试。{len(CHANNELS)} 个 3×3 卷积层，通道数为 "
            f"{'、'.join(str(c) for c, _ in CHANNELS)}（步幅 {'、'.join(str(s) for _, s in CHANNELS)}），每层之后依次为"
            "归一化与 ReLU，最后对剩余的 2×2 个位置取平均，再接一个线性层。层归一化覆盖一张图像的全部通道与位置，"
            f"组归一化分 {GROUPS} 组，权重归一化与其他方法从相同的权重出发。优化器为动量 0.9 的 SGD。",
        ),
    )
