"""The built-in tasks of `compare`: noisy digits, which is the default, two for Transformers, a forecast of series."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from normkit import catalog
from normkit.catalog import Text
from normkit.errors import ArgumentError, nearest
from normkit.study.suite import data, networks
from normkit.study.suite.forecasting import HORIZON, PERIOD, SERIES, WINDOW, forecaster, series
from normkit.study.suite.transformers import HEADS, classifier, transformer
from normkit.study.task.defaults import sgd
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
        target_loss=0.5,
        # A lower rate is far too low for every method, at any of the usual batch sizes.
        rates=(10**-2.5, 1.0),
        trials=6,
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
"""Characters of a piece of text, and symbols of the longest sequence."""
WIDTH = 32
"""Width of the Transformers and of the forecasting network."""
DEPTHS = (1, 2, 3, 4)
WIDTHS = (16, 32, 64)
"""Numbers of layers, and widths, that the Transformers of these tasks may have."""
SYMBOLS, RULES, FOLLOWED = 6, 4, 0.75
"""Symbols of the sequences, their classes, and the share of the steps at which the rule of a class is followed."""
PLACED = ("layer_norm", "rms_norm", "dynamic_tanh", "dynamic_erf")
TRANSFORMER_METHODS = (
    "none",
    *(method + place for method in PLACED for place in ("", ":post", ":peri")),
    "layer_norm:qk",
    "rms_norm:qk",
)
"""The variants of a Transformer that are compared unless others are named."""
TRANSFORMER_CLAIMS = ("RMS-1", "DyT-2", "P-2", "QK-1")
"""The claims that ``normkit compare transformers`` measures."""
Optimizer = Literal["adamw", "sgd"]


def adamw(parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """AdamW with its defaults, fused."""
    return torch.optim.AdamW(parameters, lr=lr, fused=True)


_OPTIMIZERS: Mapping[str, tuple[Callable[..., torch.optim.Optimizer], tuple[float, float], Text]] = {
    "adamw": (adamw, (1e-3, 1e-1), Text("AdamW.", "优化器为 AdamW。")),
    "sgd": (sgd, (1e-2, 1.0), Text("SGD with momentum 0.9.", "优化器为动量 0.9 的 SGD。")),
}
"""The optimizers of the Transformers: the function, the rates to try first, and the name."""


def characters(depth: int = 2, width: int = WIDTH, optimizer: Optimizer = "sgd") -> Task:
    """The next character of Python's own source, and a small causal Transformer.

    Args:
        depth: number of blocks, 1 to 4.
        width: number of features of a token: 16, 32 or 64.
        optimizer: "adamw" or "sgd".

    Raises:
        ArgumentError: another depth, width or optimizer.

    >>> [part.data[0].shape[1] for part in (characters().train, characters().test)]
    [24, 24]
    """
    _check_transformer(depth, width, optimizer)
    make, rates, using = _OPTIMIZERS[optimizer]
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
        arms=partial(transformer, width=width, depth=depth, steps=LENGTH),
        optimizer=make,
        rates=rates,
        smallest=0.05,
        methods=TRANSFORMER_METHODS,
        name=Text("characters of programs", "程序文本的字符"),
        description=Text(
            f"Source text of Python's standard library in pieces of {LENGTH} characters; at each position the next "
            f"one is predicted. A causal Transformer with {_blocks(depth)} of width {width} and {HEADS} heads. "
            f"{_WHERE} Batch norm takes its statistics over samples and positions. {using}",
            f"Python 标准库源代码，每段 {LENGTH} 个字符，在每个位置预测下一个字符。因果 Transformer，"
            f"{depth} 个宽度 {width}、{HEADS} 头的模块。{_WHERE.zh}批归一化的统计量取自全部样本与位置。{using.zh}",
        ),
    )


def sequences(depth: int = 2, width: int = WIDTH, optimizer: Optimizer = "adamw") -> Task:
    """Made-up sequences of several lengths with padding, and a small Transformer that classifies them.

    Args:
        depth, width, optimizer: as in `characters`.

    Raises:
        ArgumentError: another depth, width or optimizer.

    >>> inputs, labels = sequences().test.data
    >>> inputs.shape, sorted(set(labels.tolist())), bool((inputs == 0).any())
    (torch.Size([1000, 24]), [0, 1, 2, 3], True)
    """
    _check_transformer(depth, width, optimizer)
    make, rates, using = _OPTIMIZERS[optimizer]
    draw = partial(data.chains, symbols=SYMBOLS, classes=RULES, longest=LENGTH, share=FOLLOWED)
    return Task(
        model=None,
        train=draw(4000, 1),
        validation=draw(1000, 2),
        test=draw(1000, 3),
        arms=partial(classifier, width=width, depth=depth, steps=LENGTH, tokens=SYMBOLS + 1, classes=RULES),
        optimizer=make,
        rates=rates,
        max_steps=200,
        methods=TRANSFORMER_METHODS,
        name=Text("padded sequences", "带填充的序列"),
        description=Text(
            f"Made-up sequences of {LENGTH // 3} to {LENGTH} of {SYMBOLS} symbols in {RULES} classes: in class c a "
            f"symbol is followed by the one c places after it at {100 * FOLLOWED:.0f} % of the steps, and by any at "
            "the others, so that only pairs of neighbours tell the classes apart. A Transformer with "
            f"{_blocks(depth)} of width {width} and {HEADS} heads, and the mean over the positions. Attention and mean "
            f"skip the padding, and so do norms with statistics over positions. {_WHERE} {using}",
            f"模拟序列，由 {SYMBOLS} 种符号组成，长度 {LENGTH // 3} 至 {LENGTH}，共 {RULES} 类：第 c 类中，"
            f"{100 * FOLLOWED:.0f}% 的步上下一个符号是当前符号之后第 c 个，其余步上任意，因此只有相邻符号对能区分类别。"
            f"Transformer 有 {depth} 个宽度 {width}、{HEADS} 头的模块，最后对各位置取平均。注意力与平均都跳过填充，"
            f"统计量取自各位置的归一化也跳过填充。{_WHERE.zh}{using.zh}",
        ),
    )


_WHERE = Text(
    "The norm is before attention, before the perceptron and before the last layer, if the name of the variant gives "
    "no other placement.",
    "若变体名称未另指明位置，归一化放在注意力、感知机与最后一层之前。",
)


def transformers(depth: int = 2, width: int = WIDTH, optimizer: Optimizer = "adamw") -> Task:
    """`sequences`, with the claims about Transformers: both tasks under both optimizers at three widths."""
    return replace(sequences(depth, width, optimizer), claims=TRANSFORMER_CLAIMS)


def _blocks(depth: int) -> str:
    return f"{('one', 'two', 'three', 'four')[depth - 1]} block{'s' * (depth > 1)}"


def _check_transformer(depth: int, width: int, optimizer: str) -> None:
    allowed: tuple[tuple[str, object, Iterable[object]], ...] = (
        ("depth", depth, DEPTHS),
        ("width", width, WIDTHS),
        ("optimizer", optimizer, _OPTIMIZERS),
    )
    for name, given, values in allowed:
        if given not in values or isinstance(given, bool):
            choices = ", ".join(map(str, values))
            raise ArgumentError(
                f"{name} of this Transformer must be one of {choices}, got {given!r}: for another give your own task"
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


TASKS: Mapping[str, Callable[..., Task]] = {
    "digits": digits,
    "characters": characters,
    "sequences": sequences,
    "transformers": transformers,
    "forecast": forecast,
}
"""The built-in tasks by their names on the command line."""


def named(target: str) -> Task | None:
    """The built-in task of this name, or None; its arguments may follow a colon.

    Raises:
        ArgumentError: an argument that the task does not have, or a value that it does not take.

    >>> named("sequences:depth=4,optimizer=sgd").arms.keywords["depth"], named("package:task")
    (4, None)
    """
    name, _, written = target.partition(":")
    if name not in TASKS:
        return None
    make = TASKS[name]
    known = inspect.signature(make).parameters
    given: dict[str, int | str] = {}
    for pair in filter(None, written.split(",")):
        key, equals, value = pair.partition("=")
        if key not in known or not equals:
            usage = f"{name}:{','.join(f'{p.name}={p.default}' for p in known.values())}" if known else name
            raise ArgumentError(
                f"after a colon the task {name} takes {', '.join(known) or 'no argument'}, got {pair!r}"
                f"{f' ({nearest(key, list(known))})' if known else ''}: write {usage}, say"
            )
        given[key] = int(value) if value.isdecimal() else value
    return make(**given)
