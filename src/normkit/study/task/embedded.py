"""The built-in tasks of `compare`: noisy digits, which is the default, characters, and a forecast of series."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch.nn import functional as F

from normkit import catalog
from normkit.catalog import Text
from normkit.study.suite import data, networks
from normkit.study.suite.forecasting import HORIZON, PERIOD, SERIES, WINDOW, forecaster, series
from normkit.study.suite.sequences import transformer
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


LENGTH = 24
"""Characters of a piece of text."""
WIDTH = 32
"""Width of the Transformer and of the forecasting network."""


def characters() -> Task:
    """The next character of Python's own source, and a small causal Transformer.

    >>> [part.data[0].shape[1] for part in (characters().train, characters().test)]
    [24, 24]
    """
    pieces = data.text(LENGTH + 1, 0)
    train, validation, test = (
        (part[:, :-1], part[:, 1:]) for part in (pieces[:4000], pieces[4000:4500], pieces[4500:5500])
    )
    return Task(
        model=None,
        train=train,
        validation=validation,
        test=test,
        # Nats per character, because the fraction of wrong characters hardly changes in few steps.
        metric=F.cross_entropy,
        arms=partial(transformer, width=WIDTH, depth=2, steps=LENGTH),
        rates=(1e-2, 1.0),
        smallest=0.05,
        name=Text("characters of programs", "程序文本的字符"),
        description=Text(
            f"Source text of Python's standard library in pieces of {LENGTH} characters; at each position the next "
            f"one is predicted. A causal Transformer, two blocks of width {WIDTH} with four heads, the norm before "
            "attention, before the perceptron and before the last layer. Batch norm takes its statistics over samples "
            "and positions. SGD with momentum 0.9.",
            f"Python 标准库源代码，每段 {LENGTH} 个字符，在每个位置预测下一个字符。因果 Transformer，两个宽度 {WIDTH}、"
            "四头的模块，归一化放在注意力、感知机与最后一层之前。批归一化的统计量取自全部样本与位置。"
            "优化器为动量 0.9 的 SGD。",
        ),
    )


def forecast() -> Task:
    """Series with a cycle, which are tested at another level and scale, and a small network.

    >>> [tuple(t.shape) for t in forecast().test.data]
    [(500, 24, 3), (500, 12, 3)]
    """
    return Task(
        model=None,
        train=series(800, 1),
        validation=series(200, 2, level=1.0, scale=1.5),
        test=series(500, 3, level=3.0, scale=2.0),
        loss=F.mse_loss,
        metric=F.mse_loss,
        metric_name="mean squared error",
        arms=partial(forecaster, width=WIDTH),
        smallest=0.05,
        name=Text("shifted series", "发生漂移的序列"),
        description=Text(
            f"{SERIES} made-up series, a sine of period {PERIOD} and correlated noise; from {WINDOW} time steps the "
            f"next {HORIZON} are forecast. Training at mean 0 and deviation 1, validation at 1 and 1.5, test at 3 and "
            f"2. A perceptron of width {WIDTH} over the time steps of a series, the norm before its ReLU; reversible "
            "instance norm surrounds the whole network, which then has no other norm. SGD with momentum 0.9.",
            f"{SERIES} 条模拟序列，由周期 {PERIOD} 的正弦与相关噪声相加而成；用 {WINDOW} 个时间步预测之后 "
            f"{HORIZON} 步。训练时均值 0、标准差 1，验证时为 1 与 1.5，测试时为 3 与 2。"
            f"网络是作用在每条序列时间步上的感知机，宽度 {WIDTH}，归一化放在 ReLU 之前；"
            "可逆实例归一化则套在整个网络外面，此时网络内不再有归一化。优化器为动量 0.9 的 SGD。",
        ),
    )


TASKS: Mapping[str, Callable[[], Task]] = {"digits": digits, "characters": characters, "forecast": forecast}
"""The built-in tasks by their names on the command line."""
