"""A task: a function that makes the model, and disjoint training, validation and test data."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from normkit.errors import ArgumentError, ShapeError
from normkit.study.task.metric import ERROR, LOSS, named
from normkit.study.task.metric import Metric as Reported
from normkit.study.task.part import Part, bytes_of
from normkit.study.task.variants import applied

Builder = Callable[[str, int], nn.Module]
Metric = Callable[[Any, Any], Any]


def sgd(parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum 0.9."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, fused=True)


def wrong(outputs: Tensor, targets: Tensor) -> Tensor:
    """The fraction of samples whose largest output is not that of the target; classes in dimension 1.

    >>> wrong(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])).item()
    0.5
    """
    return (outputs.argmax(1) != targets).double().mean()


@dataclass(frozen=True)
class Task:
    """A model to train under several normalizations, and the data to train it on.

    Args:
        model: a function that makes the model, or the class. It is called for every run, with torch's generator
            seeded; equal seeds must give equal weights. `normkit.convert` replaces its norms; if it has none,
            `normkit.insert` adds norms after its layers.
        train: the training data: a `torch.utils.data.Dataset` with a length, or a pair of tensors
            (inputs, targets), samples in dimension 0.
        test: the data for the results, used once at the end of a run.
        validation: the data for choosing learning rates; by default a fifth of `train`.
        loss: (outputs, targets) -> mean loss; cross entropy by default.
        metric: (outputs, targets) -> the reported number, **lower is better** (for accuracy give ``1 - accuracy``),
            a mean over the samples. The default is the fraction of wrong classes if targets are whole numbers, else
            the loss.
        optimizer: (parameters, lr) -> a `torch.optim.Optimizer`; SGD with momentum 0.9 by default.
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
            its function.
        share: whether the metric is a fraction from 0 to 1, which is written as a percentage; by default only the
            fraction of wrong classes is.
        methods: the methods to compare if `compare` names none; by default all that fit into the model.
        claims: ids of claims of the catalog to measure in addition, if `compare` names no methods.

    Raises:
        ArgumentError: data that are empty or no data set, or a model that is not a function.

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
    loss: Metric = F.cross_entropy
    metric: Metric | None = None
    optimizer: Callable[..., torch.optim.Optimizer] = sgd
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
    methods: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.arms is None and (not callable(self.model) or isinstance(self.model, nn.Module)):
            raise ArgumentError(
                f"model must be a function that makes the model, got {type(self.model).__name__}: every run starts "
                "from a new model, so give the class or `lambda: Net(...)`"
            )
        for name in ("loss", "optimizer"):
            if not callable(getattr(self, name)):
                raise ArgumentError(f"{name} must be a function, got {getattr(self, name)!r}: see normkit.Task")
        if self.max_steps < 1:
            raise ArgumentError(f"max_steps must be at least 1, got {self.max_steps}: 400 is the default")
        for name, values in self.search.items():
            if isinstance(values, str) or (isinstance(values, Sequence) and not values):
                raise ArgumentError(
                    f"search[{name!r}] must be a sequence of values or an optuna distribution, got {values!r}: "
                    "write {'weight_decay': [0, 1e-4]}, say"
                )
        low, high = self.rates
        if not 0 < low < high:
            raise ArgumentError(f"rates must be a lowest and a higher learning rate above 0, got {self.rates}")
        train, test = Part.of("train", self.train), Part.of("test", self.test)
        if self.validation is None:
            # A fixed split, the same in every process.
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
            kept = max(1, len(train) // 5)
            if len(train) < 2:
                raise ArgumentError(
                    f"train must have at least 2 samples to choose rates on one of them, got {len(train)}"
                )
            object.__setattr__(self, "validation", train.cut(order[:kept].sort().values))
            train = train.cut(order[kept:].sort().values)
        else:
            object.__setattr__(self, "validation", Part.of("validation", self.validation))
        object.__setattr__(self, "train", train)
        object.__setattr__(self, "test", test)
        if self.metric is None:
            object.__setattr__(self, "metric", wrong if self.classes else self.loss)
        if self.smallest is None:
            object.__setattr__(self, "smallest", 0.01)

    @cached_property
    def classes(self) -> int | None:
        """Number of classes, if the targets are classes."""
        data = self.test.data
        targets = data[1] if isinstance(data, tuple) else self.test.take(torch.arange(min(len(self.test), 256)))[1]
        if self.loss is not F.cross_entropy or not isinstance(targets, Tensor) or targets.is_floating_point():
            return None
        return int(targets.max()) + 1

    @property
    def reported(self) -> Reported:
        """The metric's name, and how its values are written."""
        usual = ERROR if self.metric is wrong else LOSS if self.metric is self.loss else None
        given = self.metric_name or (usual.name if usual else getattr(self.metric, "__name__", ""))
        return Reported(named(given), self.metric is wrong if self.share is None else self.share)

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
            example, _ = self.train.take(torch.arange(min(2, len(self.train))))
            return applied(model, method, example)

    @cached_property
    def chance(self) -> float:
        """The metric of guessing: the score of a run whose loss is no longer finite."""
        if self.classes and self.metric is wrong:
            return 1 - 1 / self.classes
        return self.guess_loss if self.guess_loss and self.metric is self.loss else self._untrained()

    @property
    def guess_loss(self) -> float | None:
        """The loss of guessing, if it is known."""
        return math.log(self.classes) if self.classes else None

    def _untrained(self) -> float:
        model = self.build("none", 0).eval()
        inputs, targets = self.test.take(torch.arange(min(256, len(self.test))))
        with torch.no_grad():
            return self.measured(model(inputs), targets)

    def rehearse(self) -> None:
        """Call model, loss, metric and optimizer once, so that a mistake in them is found before hours of training.

        Raises:
            ArgumentError, ShapeError: the loss or the metric gives no finite number.
        """
        model = self.build("none", 0)
        self.optimizer([p for p in model.parameters() if p.requires_grad] or [torch.zeros(1)], self.rates[0])
        inputs, targets = self.train.take(torch.arange(min(4, len(self.train))))
        loss = self.loss(model(inputs), targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.isfinite():
            raise ArgumentError(
                f"loss must give one finite number as a tensor, got {loss!r} from the untrained model: return the mean "
                "over samples"
            )
        self._untrained()

    def measured(self, outputs: Any, targets: Any) -> float:
        """The metric as a number; anything else is an error."""
        assert self.metric is not None
        value = self.metric(outputs, targets)
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ShapeError(
                f"metric must give one number, got a tensor of shape {tuple(value.shape)}: return its mean over samples"
            )
        if not math.isfinite(value):
            raise ArgumentError(
                f"metric must give a finite number, got {float(value)} on {_count(targets)} samples: check what it "
                "divides by"
            )
        return float(value)

    def fingerprint(self) -> str:
        """A digest that changes with the data, the text of the task and the code of its functions."""
        digest = hashlib.sha256(f"{self.name} {self.description} {self.rates} {sorted(self.search.items())}".encode())
        for function in (self.model, self.arms, self.loss, self.metric, self.optimizer, self.probe):
            digest.update(_source(function).encode())
        for part in (self.train, self.validation, self.test):
            digest.update(part.digest().encode())
        return digest.hexdigest()[:16]


def subset(task: Task, images: int) -> Task:
    """The same task with fewer samples to train on.

    Raises:
        ArgumentError: the number is larger than that of the training samples.
    """
    if not 1 <= images <= len(task.train):
        raise ArgumentError(f"a subset has 1 to {len(task.train)} samples, got {images}")
    return replace(task, train=task.train.cut(torch.arange(images)))


def _count(targets: Any) -> int:
    return next((len(leaf) for leaf in pytree.tree_leaves(targets) if isinstance(leaf, Tensor) and leaf.dim()), 1)


def _source(function: Any) -> str:
    """The code of a function and its bound values."""
    if isinstance(function, partial):
        bound = [*enumerate(function.args), *sorted(function.keywords.items())]
        return f"{_source(function.func)} {[(name, _written(value)) for name, value in bound]}"
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        if hasattr(function, "__qualname__"):
            return str(function.__qualname__)
    # A callable object: the code of its class, and those attributes that are the same in every process.
    named = getattr(function, "__dict__", {}).items()
    plain = sorted((name, value) for name, value in named if isinstance(value, (Tensor, str, int, float)))
    return f"{_source(type(function))} {[(name, _written(value)) for name, value in plain]}"


def _written(value: Any) -> str:
    return hashlib.sha256(bytes_of(value)).hexdigest() if isinstance(value, Tensor) else repr(value)
