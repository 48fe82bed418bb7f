"""The workloads of the experiments on claims: one workload may serve several experiments.

Designs are fixed here before any result, and no result changes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from torch.nn.functional import mse_loss

from normkit.study.claims import factors
from normkit.study.execution.workload import Workload
from normkit.study.suite import data
from normkit.study.suite.forecasting import forecaster, series
from normkit.study.suite.networks import Builder, convnet, mlp, with_placement
from normkit.study.suite.sequences import characters, recurrent
from normkit.study.suite.stylizer import StyleLoss, Stylizer
from normkit.study.suite.transformers import transformer
from normkit.study.task import Task, embedded, probes
from normkit.study.training.design import Design

MAIN = "digits"
"""The workload of the comparison itself."""

DEEP = ((16, 1), (16, 1), (16, 1), (16, 1), (16, 2), (16, 1), (16, 1), (16, 1))
FLAT = ((16, 2), (16, 1), (16, 1), (16, 1))
SMALL = ((16, 1), (16, 2), (16, 1))
FEW = ((16, 2), (16, 2), (16, 1))
MLP_BATCHES = (2, 4, 32)
SAMPLES = 3200
"""The number of images that a perceptron processes in training at any batch size."""
LARGER, FEWER_SAMPLES = 16, 1000
"""The larger batch of the small convolutional network, and the number of images that it processes at any batch size."""


def _digits(name: str, build: Builder, *, noise: float = 0.2, train: int = 800, seed: int = 0) -> Task:
    parts = data.digits((train, 200, 797), noise, seed)
    return Task(None, parts[0], parts[2], validation=parts[1], arms=build, name=name)


def deep(full: bool) -> Workload:
    """Eight convolutions, deep enough for norms to make a difference in training."""
    variants = ("none", "none:init", "batch_norm", "batch_norm:last", "batch_norm:after", "layer_norm", "weight_norm")
    build = partial(with_placement, channels=DEEP, images=data.digits((800, 200, 797), 0.2)[0][0][:64])
    task = _digits("deep convolutional net", build)
    design = Design(
        *((*variants, "weight_norm:init"), (16,), 16 if full else 8, 5, 200),
        target_loss=1.0,
        lowest_rate=10**-2.5,
        highest_rate=10**-0.5,
        choose="training",
    )
    return Workload("deep", task, design)


def rates(full: bool) -> Workload:
    """The deep network at every rate on several seeds; no rate is chosen, so there are no further runs."""
    variants = ("none", "batch_norm", "group_norm")
    runs = 20 if full else 8
    design = Design(
        *(variants, (16,), 0, 7, 100),
        lowest_rate=1e-2,
        highest_rate=10.0,
        choose="training",
        tuning_runs=runs,
        # Equal batches of trials, because a step is recorded for each number of copies.
        stack=28,
    )
    return Workload("rates", _digits("deep convolutional net", partial(convnet, channels=DEEP)), design)


def mlp_at(batch_size: int, full: bool) -> Workload:
    """A network without positions, so that batch norm has one value per sample; equal samples at every batch size."""
    variants = {2: ("batch_norm", "group_norm", "layer_norm"), 32: ("group_norm", "layer_norm")}
    build = partial(mlp, inputs=64, width=96, depth=4)
    task = _digits("perceptron", build, noise=0.3)
    asked = variants.get(batch_size, ("batch_norm", "group_norm"))
    lowest, highest = (1e-2, 0.3162) if batch_size == MLP_BATCHES[-1] else (1e-3, 10**-1.5)
    seeds, steps = 16 if full else 8, SAMPLES // batch_size
    design = Design(asked, (batch_size,), seeds, 4, steps, lowest_rate=lowest, highest_rate=highest)
    return Workload(f"mlp-{batch_size}", task, design)


def noise(full: bool) -> Workload:
    """Few images, a large batch, and statistics over parts of it."""
    task = _digits("few images", partial(convnet, channels=FLAT), train=300)
    variants = ("batch_norm", "batch_norm:ghost-16", "batch_norm:dropout-0.1")
    design = Design(variants, (64,), 24 if full else 12, 4, 150, lowest_rate=0.1, highest_rate=10**0.5)
    return Workload("noise", task, design)


def sequence(batch_size: int, full: bool) -> Workload:
    """Digits, row by row, in a recurrent network."""
    train, validation, test = (data.rows(part) for part in data.digits((800, 200, 797), 0.2))
    variants = ("none", "batch_norm", "layer_norm", *(("batch_norm:each-step",) if full else ()))
    build = partial(recurrent, inputs=8, width=48, steps=8)
    task = Task(None, train, test, validation=validation, arms=build, name="recurrent net")
    steps, lowest, highest = {4: (600, 10**-2.4, 10**-0.6), 32: (200, 10**-1.8, 1.0)}[batch_size]
    design = Design(variants, (batch_size,), 16 if full else 8, 4, steps, lowest_rate=lowest, highest_rate=highest)
    return Workload(f"sequence-{batch_size}", task, design)


def text(full: bool) -> Workload:
    """The next character of Python's standard library, by a recurrent net."""
    design = Design(
        ("batch_norm", "layer_norm"), (8,), 12 if full else 6, 3, 250, lowest_rate=0.1, stack=16, smallest=0.05
    )
    return Workload("text", _text(partial(characters, width=64, steps=24)), design)


def attention(full: bool) -> Workload:
    """The next character, by a Transformer."""
    variants = ("none", "batch_norm", "layer_norm")
    design = Design(variants, (8,), 12 if full else 6, 6, 600, lowest_rate=1e-3, highest_rate=0.3162, smallest=0.05)
    return Workload("attention", _text(partial(transformer, width=64, depth=3, steps=24)), design)


def _text(build: Builder) -> Task:
    return replace(embedded.characters(), arms=build, name="characters")


def early(full: bool) -> Workload:
    """A network after few batches, when running statistics are least accurate."""
    task = _digits("start of training", partial(convnet, channels=DEEP))
    design = Design(("batch_norm", "group_norm"), (16,), 16 if full else 8, 6, 30, window=10)
    return Workload("early", task, design)


def contrast(full: bool) -> Workload:
    """Classes that differ only in contrast."""
    train, validation, test = (
        data.by_contrast(part, 6, seed) for seed, part in enumerate(data.digits((800, 200, 797), 0.05))
    )
    variants = ("batch_norm", "layer_norm", "instance_norm")
    build = partial(convnet, channels=SMALL, classes=6, padding="replicate")
    task = Task(None, train, test, validation=validation, arms=build, name="classes by contrast")
    return Workload("contrast", task, Design(variants, (16,), 12 if full else 6, 4, 150, lowest_rate=10**-1.8))


def groups(width: int, full: bool) -> Workload:
    """The same network with different numbers of groups."""
    task = _digits("groups", partial(convnet, channels=tuple((width, stride) for _, stride in FLAT)))
    counts = [n for n in (1, 2, 4, 8, 16) if n <= width]
    variants = tuple(f"group_norm:{n}" for n in counts)
    return Workload(f"groups-{width}", task, Design(variants, (16,), 16 if full else 8, 5, 200, lowest_rate=1e-2))


def stylizer(style: str, full: bool) -> Workload:
    """Pieces of a photograph in the style of another picture."""
    content = [data.patches("temple", 16, count, seed) for seed, count in enumerate((256, 64, 128))]
    train, validation, test = ((part, part) for part in content)
    task = Task(
        None,
        train,
        test,
        validation=validation,
        loss=StyleLoss(data.patches(style, 16, 256, 9)),
        arms=partial(Stylizer, width=16),
        smallest=0.05,
        name=f"stylizer, {style}",
    )
    methods = ("batch_norm", "instance_norm")
    design = Design(methods, (8,), 12 if full else 6, 4, 150, lowest_rate=10**-3.2, highest_rate=10**-0.8)
    return Workload(f"stylizer-{style}", task, design)


def small(batch_size: int, full: bool) -> Workload:
    """Convolutions at few positions, so that statistics of the batch are poor if it is small; equal samples."""
    variants = ["batch_norm", "filter_response_norm", "evo_norm_s0", "switchable_norm"]
    variants += ["evo_norm_b0", "iter_norm"] if batch_size == LARGER else []
    task = _digits("few positions", partial(convnet, channels=FEW))
    probe = partial(probes.of_statistics, images=task.test.data[0])
    steps, seeds = FEWER_SAMPLES // batch_size, 12 if full else 6
    lowest = 1e-2 if batch_size == LARGER else 10 ** (-8 / 3)
    design = Design(
        *(tuple(variants), (batch_size,), seeds, 4, steps),
        target_loss=1.0,
        lowest_rate=lowest,
        highest_rate=100 * lowest,
        tuning_runs=1,
    )
    return Workload(f"small-{batch_size}", replace(task, probe=probe), design)


def responses(full: bool) -> Workload:
    """Layer norm of each pixel, and the same with global response norm."""
    task = _digits("responses", partial(convnet, channels=FLAT))
    probe = partial(probes.channel_distance, images=task.test.data[0][:64])
    variants, seeds = ("layer_norm2d", "global_response_norm"), 16 if full else 8
    design = Design(variants, (16,), seeds, 4, 120, lowest_rate=1e-2, highest_rate=10**-0.5)
    return Workload("responses", replace(task, probe=probe), design)


def forecast(kind: Literal["cycle", "reverting"], full: bool) -> Workload:
    """A forecast of series as those of the training; the probe has others."""
    train, validation, test = (series(count, seed, kind) for seed, count in enumerate((800, 200, 500)))
    window, target = series(500, 3, kind, level=3.0, scale=2.0)
    task = Task(
        None,
        train,
        test,
        validation=validation,
        loss=mse_loss,
        metric=mse_loss,
        arms=partial(forecaster, width=embedded.WIDTH),
        probe=partial(probes.relative_error, window=window, target=target),
        name=f"series, {kind}",
    )
    name = {"cycle": "shifted", "reverting": "reverting"}[kind]
    design = Design(("none", "revin"), (16,), 16 if full else 8, 5, 200, lowest_rate=1e-2)
    return Workload(name, task, design)


def spectral(full: bool) -> Workload:
    """A perceptron with plain weights and with bounded ones."""
    task = _digits("bounded weights", partial(mlp, inputs=64, width=96, depth=4))
    probe = partial(probes.steepness, images=task.test.data[0][:64])
    design = Design(("none", "spectral_norm"), (32,), 16 if full else 8, 4, 100, lowest_rate=10**-1.5, tuning_runs=1)
    return Workload("spectral", replace(task, probe=probe), design)


WORKLOADS: dict[str, Callable[[bool], Workload]] = {
    "deep": deep,
    "rates": rates,
    **{f"mlp-{size}": partial(mlp_at, size) for size in MLP_BATCHES},
    "noise": noise,
    "sequence-4": partial(sequence, 4),
    "sequence-32": partial(sequence, 32),
    "text": text,
    "attention": attention,
    "early": early,
    "contrast": contrast,
    "groups-8": partial(groups, 8),
    "groups-16": partial(groups, 16),
    **{f"stylizer-{style}": partial(stylizer, style) for style in ("flower", "brick", "gravel")},
    **factors.WORKLOADS,
    "small-2": partial(small, 2),
    "small-16": partial(small, LARGER),
    "responses": responses,
    "shifted": partial(forecast, "cycle"),
    "reverting": partial(forecast, "reverting"),
    "spectral": spectral,
}
"""The workloads by name; each is made on request: (whether with narrow intervals) -> workload."""
