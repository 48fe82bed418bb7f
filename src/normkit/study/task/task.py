"""A task: a function that makes the model, and disjoint training, validation and test data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.errors import ArgumentError
from normkit.study.task import recipe
from normkit.study.task.batches import EVALUATED, Collate, Unpack, unpacked
from normkit.study.task.checked_loss import checked_loss
from normkit.study.task.defaults import sgd, usual_loss
from normkit.study.task.masks import give_masks
from normkit.study.task.metric import Metric
from normkit.study.task.own import OwnScheme
from normkit.study.task.part import Part, call
from normkit.study.task.recipe import Schedule
from normkit.study.task.scoring.scheme import Scheme, check_metric
from normkit.study.task.source import digest_of_fields
from normkit.study.task.variants import applied

Builder = Callable[[str, int], nn.Module]
Loss = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Task:
    """A model to train under several normalizations, and the data to train it on.

    A batch is split into inputs and targets: a pair is both; of three items or more the last is the targets; of a
    dictionary the labels are (``labels``, ``label``, ``targets``, ``target`` or ``y``); one tensor is both. The model
    is called with the inputs as the tools of normkit call it: ``model(*inputs)`` for a tuple or list,
    ``model(**inputs)`` for a dictionary, else ``model(inputs)``.

    Args:
        model: a function that makes the model, or the class. It is called for every run, with torch's generator
            seeded; equal seeds must give equal weights. `normkit.convert` replaces its norms; if it has none,
            `normkit.insert` adds norms after its layers.
        train: the training data: tensors or arrays, samples in dimension 0, as a pair (inputs, targets) or a
            dictionary; a data set with a length; a `DataLoader`, whose data set, `collate_fn` and weights of samples
            are taken, batch size and order are not; or an iterable.
        test: the data for the results, used once at the end of a run.
        validation: the data for choosing learning rates; by default a fifth of `train`.
        loss: (outputs, targets) -> mean loss. By default the `loss` of the outputs if the model gives one, to which
            then the labels of a dictionary are passed too; else cross entropy.
        metric: what is reported, computed from all samples of a set at once: a function (outputs, targets) -> number,
            or an object or class with `update(outputs, targets)` and `compute()`, such as the metrics of torchmetrics.
            The default is the fraction of errors if targets are whole numbers and outputs have a number for each
            class, or if targets are 0 or 1 and the loss is a binary cross entropy; else the loss.
        optimizer: (parameters, lr) -> a `torch.optim.Optimizer`; SGD with momentum 0.9 by default. It may return
            (optimizer, scheduler), whose steps follow the training steps, and several optimizers for a
            `training_step` that takes them. A closure is given to those that need one, as `LBFGS`.
        search: further arguments of `optimizer` to tune in addition to the rate, by name: a sequence of values to
            choose from, or an `optuna` distribution. The number of settings tried is that of the rates, the same for
            every method.
        max_steps: largest number of training steps of one run.
        rates: lowest and highest learning rate to try first; the range is extended if the best one is at its end.
        smallest: the smallest difference of the metric that matters to you; 0.01 by default for an error.
        name: name of the task, for the answer.
        description: description of the task, for the report.
        probe: model -> {name: number}, further measurements of a trained model.
        origin: the name of the task on the command line.
        arms: (variant, seed) -> model, if you build every variant yourself; then `model` is not needed.
        metric_name: name of the metric in the report, such as "mean squared error"; by default the name of
            its function. Of the values of `evaluate`, the one that is reported; by default the first.
        share: whether the metric is a fraction from 0 to 1, which is written as a percentage; by default the name
            decides, as of accuracy.
        higher_is_better: the direction of the metric. A metric of torchmetrics states it itself; otherwise lower is
            better, and a metric whose name or values look like the other direction is refused.
        metrics: further metrics by name, measured on the test data and reported; nothing is decided on them.
        collate_fn: a list of samples -> a batch, as in `DataLoader`; it pads samples of several lengths.
        unpack: batch -> (inputs, targets), if the rule above is not yours.
        samples: number of training samples to read of an iterable; by default as many as one run takes.
        evaluation_batch: samples in a batch of the evaluation; 512 by default.
        mask: inputs -> a boolean mask, (N, T), True at positions that are no padding; the norms of normkit in the
            model get it, if they see positions of that shape, and take their statistics without the padding.
        max_epochs: length of a run in passes over the training data instead of steps.
        schedule: "cosine" (the default), "linear" or "constant", or (step, steps) -> the share of the learning rate.
        warmup: number of steps, or fraction of the run, in which the rate rises linearly from 0.
        clip: the largest norm of all gradients together; larger ones are scaled down to it.
        accumulate: number of batches whose gradients are averaged for one step.
        parameters: model -> what `optimizer` gets, such as parameter groups by `normkit.param_groups`; by default a
            list of the parameters that require a gradient.
        ema: decay of the exponential moving average of the weights and buffers; the average is evaluated.
        patience: stop early. The metric on the validation data is checked 20 times in a run; the run ends after
            this many checks in a row without a better one, and keeps the weights of the best.
        training_step: (model, batch) -> the loss, instead of calling the model and `loss`; or (model, batch,
            optimizers) -> a number for the learning curve, which makes the whole step itself. Evaluation uses it too
            if there is neither `loss` nor `evaluate`.
        evaluate: (model, loader) -> {name: value}, instead of `metric`; in evaluation mode and without gradients. The
            loader gives all batches of one part of the data.
        methods: the methods to compare if `compare` names none; by default all that fit into the model.
        claims: ids of claims of the catalog to measure in addition, if `compare` names no methods.
        target_loss: the training loss to which steps are counted; by default, at each batch size, halfway from the
            loss at the start to the lowest at the end.
        trials: number of learning rates to try for each method at each batch size, evenly spaced in log.

    Raises:
        ArgumentError: data that are empty or no data set, a model that is not a function, or an option out of range.

    Example:
        >>> import torch
        >>> x, y = torch.randn(60, 4), torch.randint(0, 3, (60,))
        >>> task = Task(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (x, y), (x, y))
        >>> len(task.train), len(task.validation), len(task.test)
        (48, 12, 60)
    """

    model: Callable[[], nn.Module] | None
    train: Any
    test: Any
    validation: Any = None
    loss: Loss | None = None
    metric: Any = None
    optimizer: Callable[..., Any] = sgd
    search: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int = 400
    rates: tuple[float, float] = (1e-3, 1.0)
    smallest: float | None = None
    name: str = "this task"
    description: str = ""
    probe: Callable[[nn.Module], dict[str, float]] | None = None
    arms: Builder | None = None
    origin: str = "pkg.module:task"
    metric_name: str = ""
    share: bool | None = None
    higher_is_better: bool | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    collate_fn: Collate | None = None
    unpack: Unpack | None = None
    samples: int | None = None
    evaluation_batch: int | None = None
    mask: Callable[[Any], Tensor] | None = None
    max_epochs: float | None = None
    schedule: str | Schedule | None = None
    warmup: float = 0
    clip: float | None = None
    accumulate: int = 1
    parameters: Callable[[nn.Module], Any] | None = None
    ema: float | None = None
    patience: int | None = None
    training_step: Callable[..., Any] | None = None
    evaluate: Callable[[nn.Module, Any], Mapping[str, Any]] | None = None
    methods: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    target_loss: float | None = None
    trials: int = 7

    def __post_init__(self) -> None:
        if self.arms is None and (not callable(self.model) or isinstance(self.model, nn.Module)):
            raise ArgumentError(
                f"model must be a function that makes the model, got {type(self.model).__name__}: every run starts "
                "from a new model, so give the class or `lambda: Net(...)`"
            )
        for name in ("loss", "optimizer"):
            value = getattr(self, name)
            if not callable(value) and not (name == "loss" and value is None):
                raise ArgumentError(f"{name} must be a function, got {value!r}: see normkit.Task")
        for name, values in self.search.items():
            if isinstance(values, str) or (isinstance(values, Sequence) and not values):
                raise ArgumentError(
                    f"search[{name!r}] must be a sequence of values or an optuna distribution, got {values!r}: "
                    "write {'weight_decay': [0, 1e-4]}, say"
                )
        low, high = self.rates
        if not 0 < low < high:
            raise ArgumentError(f"rates must be a lowest and a higher learning rate above 0, got {self.rates}")
        recipe.check(self)
        self._take_parts()
        if self.loss is None and self.training_step is None:
            # The model's own loss needs the labels of a dictionary; of a pair they are no inputs.
            pair = isinstance(self.train.data, tuple)
            object.__setattr__(self, "loss", F.cross_entropy if pair else usual_loss)
        if self.smallest is None:
            object.__setattr__(self, "smallest", 0.01)
        for name, metric in {"metric": self.metric, **self.metrics}.items():
            if metric is not None:
                check_metric(name, metric)
        # A metric without a direction is refused here.
        _ = self.scheme.higher_is_better

    def _take_parts(self) -> None:
        """Make parts of the data; validation is cut from training if it is not given."""
        unpack = self.unpack
        if unpack is None and self.loss not in (None, usual_loss):
            unpack = partial(unpacked, keep_labels=False)
        for name in ("train", "validation", "test"):
            given = getattr(self, name)
            if given is not None or name != "validation":
                part = Part.of(name, given, self.collate_fn, unpack)
                if unpack is not self.unpack and isinstance(part.data, tuple):
                    part = replace(part, unpack=None)
                object.__setattr__(self, name, part)
        if self.validation is None and self.train.stream is None:
            train, validation = self._divided(self.train)
            object.__setattr__(self, "validation", validation)
            object.__setattr__(self, "train", train)

    @staticmethod
    def _divided(train: Part) -> tuple[Part, Part]:
        """Training and validation, by a fixed split, the same in every process."""
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        kept = max(1, len(train) // 5)
        if len(train) < 2:
            raise ArgumentError(f"train must have at least 2 samples to choose rates on one of them, got {len(train)}")
        return train.cut(order[kept:].sort().values), train.cut(order[:kept].sort().values)

    def read(self, samples: int) -> Task:
        """The task with as many samples of its iterables as a run takes; itself if it has none.

        Args:
            samples: that the longest run takes, unless `samples` of the task says another number.

        Raises:
            ArgumentError: an iterable ends too early.
        """
        change: dict[str, Any] = {}
        for name in ("validation", "test"):
            part = getattr(self, name)
            if part is not None and part.stream is not None:
                if not part.stream.read(EVALUATED):
                    raise ArgumentError(f"{name} must have samples, but the iterable ended at once: begin it anew")
                change[name] = replace(part, data=part.stream.samples)
        if (stream := self.train.stream) is not None:
            wanted = self.samples or samples
            count = wanted if self.validation is not None else -(-wanted * 5 // 4)
            if (found := stream.read(count)) < count:
                raise ArgumentError(
                    f"train must give the {count} samples that one run and its validation take, but the iterable ended "
                    f"after {found}: choose fewer steps, or pass over fewer samples several times with samples="
                    f"{max(1, found * 4 // 5)}"
                )
            change["train"] = replace(self.train, data=stream.samples[:count])
            if self.validation is None:
                change["train"], change["validation"] = self._divided(change["train"])
        return replace(self, **change) if change else self

    @classmethod
    def from_lightning(
        cls, module: Callable[[], Any], train: Any, test: Any, *, metric: str | None = None, **options: Any
    ) -> Task:
        """The task of a Lightning module: its training step, optimizers and schedulers, and its validation step.

        Args:
            module: a function that makes the module, or its class.
            train, test: the data, such as its loaders; `validation=` may be among the options.
            metric: name of the value that is reported, as the validation step logs it; by default the first.
            options: further arguments of the task. The first learning rate of the module is the one that is tuned.

        Raises:
            ArgumentError: what is given is no such module.
        """
        from normkit.study.task.adapters import lightning

        return cls(train=train, test=test, **lightning.options_of(module, metric) | options)

    @classmethod
    def from_trainer(cls, trainer: Any, **options: Any) -> Task:
        """The task of a Hugging Face `Trainer`: its model, data, collator, metrics, and the arguments of the training.

        AdamW without decay of norms and biases, as the trainer makes it, with its schedule, warm-up, clipping and
        accumulation; the learning rate is tuned around that of the arguments. `eval_dataset` is the test data.

        Args:
            trainer: with `model_init` or a model, which then every run starts from.
            options: further arguments of the task, in place of those of the trainer.

        Raises:
            ArgumentError: the trainer has no data, or a schedule that this library does not have.
        """
        from normkit.study.task.adapters import trainer as adapter

        return cls(**adapter.options_of(trainer) | options)

    @property
    def own(self) -> bool:
        """Whether it is measured by functions of the user alone, and not by a loss of outputs and targets."""
        return self.evaluate is not None or (self.training_step is not None and self.loss is None)

    @property
    def manual(self) -> bool:
        """Whether `training_step` makes the whole step itself."""
        return self.training_step is not None and recipe.takes(self.training_step) == 3

    @cached_property
    def scheme(self) -> Scheme | OwnScheme:
        """How the task is scored."""
        if self.own:
            return OwnScheme(self)
        assert self.loss is not None
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        given = (self.loss, self.metric, self.metric_name, self.share, self.higher_is_better)
        return Scheme(*given, parts, self._untrained_outputs)

    @property
    def reported(self) -> Metric:
        """The metric's name and direction, and how its values are written."""
        return self.scheme.reported

    def build(self, method: str, seed: int) -> nn.Module:
        """A new model with a method applied; equal seeds give equal weights with every method."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.arms is not None:
                return self.arms(method, seed)
            assert self.model is not None
            model = self.model()
            if not isinstance(model, nn.Module):
                raise ArgumentError(f"model must make a torch module, got {type(model).__name__}: return the model")
            example, _ = self.train.take(self.train.first(2))
            try:
                model = applied(model, method, example)
            except NotImplementedError as error:
                raise ArgumentError(
                    f"model must have a forward that takes the inputs, got {type(model).__name__} ({error}): a call "
                    "shows the shapes at the places of norms"
                ) from error
            return model if self.mask is None else give_masks(model, self.mask)

    @property
    def chance(self) -> float:
        """The metric of guessing on the test data."""
        return self.scheme.guess("test")

    def _untrained_outputs(self, seed: int, inputs: Any) -> Any:
        model = self.build("none", seed).eval()
        with torch.no_grad():
            return call(model, inputs)

    def rehearse(self) -> None:
        """Call model, loss, metric and optimizer once, so that a mistake in them is found before hours of training.

        Raises:
            ArgumentError, ShapeError: the loss or the metric gives no finite number.
        """
        if self.own:
            self.scheme.check()
            return
        assert self.loss is not None
        model = self.build("none", 0)
        loss = checked_loss(self.loss, model, self.train.take(self.train.first(4)))
        for name in ("train", "validation", "test"):
            part: Part = getattr(self, name)
            if (extremes := part.extremes()) is not None:
                checked_loss(
                    self.loss, model, part.take(extremes), f" with the lowest and highest targets of the {name} data"
                )
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.isfinite():
            raise ArgumentError(
                f"loss must give one finite number as a tensor, got {loss!r} from the untrained model: return the mean "
                "over samples"
            )
        self.scheme.check()

    def fingerprint(self) -> str:
        """A digest that changes with the data and with the code and the values that the functions compute with."""
        counted = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _WITHOUT_EFFECT}
        return digest_of_fields({k: v.digest() if isinstance(v, Part) else v for k, v in counted.items()})[:16]


_WITHOUT_EFFECT = (
    *("name", "description", "origin", "metric_name", "share", "smallest", "max_steps", "max_epochs", "samples"),
    *("target_loss", "trials", "evaluation_batch"),
    # A trial has its own method, rate and options.
    *("methods", "claims", "rates", "search"),
)
"""Fields that no run depends on, apart from its trial and the design."""


def subset(task: Task, images: int) -> Task:
    """The same task with fewer samples to train on.

    Raises:
        ArgumentError: the number is larger than that of the training samples.
    """
    if not 1 <= images <= len(task.train):
        raise ArgumentError(f"a subset has 1 to {len(task.train)} samples, got {images}")
    return replace(task, train=task.train.cut(torch.arange(images)))
