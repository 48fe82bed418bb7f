"""A user's own model and data: which arguments are allowed or refused, and where norms are placed."""

from pathlib import Path

import pytest
import torch
from made_up import prepared
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

import normkit
from normkit.errors import ArgumentError, NormkitError
from normkit.study.task import Part, Task, subset, variants
from normkit.tools.model.tree import norms

GENERATOR = torch.Generator().manual_seed(0)


X = torch.randn(120, 6, generator=GENERATOR)


Y = (X @ torch.randn(6, 3, generator=GENERATOR)).argmax(1)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """A map-style data set that fetches one sample at a time."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index], Y[index]


def test_a_data_set_a_pair_and_a_tensor_data_set_are_the_same_task() -> None:
    pair, dataset, tensors = (Task(net, data, data) for data in ((X, Y), Rows(), TensorDataset(X, Y)))
    for other in (dataset, tensors):
        assert len(other.validation) == len(pair.validation) == 24
        index = torch.tensor([[3, 5], [0, 7]])
        for one, two in zip(pair.train.take(index), other.train.take(index), strict=True):
            assert torch.equal(one, two)


def test_validation_is_cut_from_training_and_shares_nothing_with_it() -> None:
    task = Task(net, (torch.arange(50.0).unsqueeze(1), Y[:50]), (X, Y))
    kept, cut = (set(part.data[0].flatten().tolist()) for part in (task.train, task.validation))
    assert not kept & cut
    assert kept | cut == set(range(50))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": net()}, "model must be a function that makes the model, got Sequential: every run starts from"),
        ({"train": (X, Y[:5])}, r"train must be tensors or arrays with one length, got lengths \[5, 120\]"),
        ({"test": 3}, "test must be a torch Dataset, a DataLoader or tensors"),
        ({"test": []}, "test must have samples, got none"),
        ({"test": (X[:0], Y[:0])}, "test must have samples, got none"),
        ({"train": (X[:1], Y[:1])}, "train must have at least 2 samples to choose rates on one of them, got 1"),
        ({"loss": 3}, "loss must be a function, got 3"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"rates": (1.0, 0.1)}, r"rates must be a lowest and a higher learning rate above 0, got \(1.0, 0.1\)"),
        ({"search": {"momentum": []}}, r"search\['momentum'\] must be a sequence of values or an optuna distribution"),
    ],
)
def test_a_task_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Task(**{"model": net, "train": (X, Y), "test": (X, Y)} | change)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["batch_norm", "layer_norm", "rms_norm", "weight_norm"])
def test_norms_are_put_into_a_model_that_has_none(method: str) -> None:
    task = Task(net, (X, Y), (X, Y))
    plain, normed = task.build("none", 3), task.build(method, 3)
    changed = [
        m for m in normed.modules() if hasattr(m, "parametrizations") or type(m).__module__.startswith("normkit")
    ]
    assert changed
    assert normed(X).shape == (120, 3)
    # The last layer gives the classes; a norm there would restrict its outputs.
    assert torch.equal(normed[-1].weight, plain[-1].weight)
    assert type(normed[-1]) is nn.Linear


class Normed(nn.Module):
    """A small convolutional network that has norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x.view(-1, 1, 6, 6))))
        return self.head(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


IMAGES = torch.randn(60, 36, generator=GENERATOR), torch.randint(0, 3, (60,), generator=GENERATOR)


def test_norms_of_a_model_are_exchanged_and_nothing_else() -> None:
    task = Task(Normed, IMAGES, IMAGES)
    kinds = {
        method: type(task.build(method, 1).bn).__name__  # type: ignore[union-attr]
        for method in ("unchanged", "batch_norm", "group_norm", "instance_norm")
    }
    assert kinds == {
        "unchanged": "BatchNorm2d",
        "batch_norm": "BatchNorm2d",
        "group_norm": "GroupNorm",
        "instance_norm": "InstanceNorm2d",
    }
    for method in ("none", "group_norm", "weight_norm", "unchanged"):
        model = task.build(method, 1)
        assert torch.allclose(model.conv.weight, task.build("unchanged", 1).conv.weight, rtol=1e-6)  # type: ignore[union-attr]
    plain = task.build("none", 1)
    assert not list(norms(plain))
    # Scale and shift stay: only the normalizing is gone.
    assert len(list(plain.parameters())) == len(list(task.build("batch_norm", 1).parameters()))


@pytest.mark.parametrize(
    ("method", "kind"), [("DyT", "DynamicTanh"), ("Derf", "DynamicErf"), ("ScaleNorm", "ScaleNorm")]
)
def test_layer_norms_are_exchanged_for_layers_of_their_own(method: str, kind: str) -> None:
    name = variants.method_name(method)
    for model in (nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)), net()):
        made = variants.applied(model, name, X[:4])
        assert kind in {type(module).__name__ for module in made.modules()}
        assert made(X[:4]).shape == (4, 3)


def test_a_model_without_a_place_for_a_norm_is_refused() -> None:
    task = Task(lambda: nn.Sequential(nn.Flatten()), (torch.randn(20, 3), torch.randint(0, 3, (20,))), (X[:, :3], Y))
    with pytest.raises(ArgumentError, match="must fit somewhere in the model, but it does not"):
        variants.applied(nn.Sequential(nn.Flatten()), "batch_norm", torch.randn(2, 3))
    with pytest.raises(ArgumentError, match="some norm must fit into the model, but none does"):
        prepared(task, batch_sizes=[2])


def test_what_is_no_model_is_named() -> None:
    with pytest.raises(ArgumentError, match="model must make a torch module, got int"):
        Task(lambda: 3, (X, Y), (X, Y)).build("none", 0)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"metric": lambda outputs, targets: outputs.argmax(1) != targets},
            r"metric must give one number, got a tensor of shape \(120,\): return its mean over samples",
        ),
        (
            {"metric": lambda outputs, targets: float("nan")},
            "metric must give a finite number, got nan on 120 samples: check what it divides by",
        ),
        (
            {"loss": lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none")},
            "loss must give one finite number as a tensor, got tensor",
        ),
        ({"loss": lambda outputs, targets: outputs.sum() * float("inf")}, "loss must give one finite number"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(change: dict[str, object], message: str, tmp_path: Path) -> None:
    task = Task(**{"model": net, "train": (X, Y), "test": (X, Y)} | change)  # type: ignore[arg-type]
    with pytest.raises(NormkitError, match=message):
        normkit.compare(task, out=tmp_path / "report")
    assert not (tmp_path / "report").exists()


def late(outputs: Tensor, targets: Tensor) -> float:
    """A metric that is a number for models that know nothing only."""
    error = (outputs.argmax(1) != targets).double().mean().item()
    return error if error > 0.5 else float("nan")


def test_a_metric_that_fails_later_is_a_recorded_failure(tmp_path: Path) -> None:
    task = Task(net, (X, Y), (X, Y), metric=late)
    found = normkit.compare(
        task, methods=["BN"], batch_sizes=[8], seeds=2, trials=3, steps=80, workers=1, out=tmp_path, progress=False
    )
    assert found.path is not None
    assert found.complete
    assert found.failures
    assert all("metric must give a finite number, got nan" in run.message for run in found.failures)


def test_regression_and_what_the_task_opens_are_tuned(tmp_path: Path) -> None:
    targets = X @ torch.tensor([[1.0], [-2.0], [0.5], [0.0], [3.0], [1.0]])
    task = Task(
        lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)),
        (X, targets),
        (X, targets),
        loss=F.mse_loss,
        optimizer=torch.optim.AdamW,
        search={"weight_decay": [0.1, 10.0]},
        smallest=0.1,
        name="a line",
    )
    found = normkit.compare(
        task, methods=["LN"], batch_sizes=[8], seeds=2, trials=3, steps=60, workers=1, out=tmp_path, progress=False
    )
    assert found.complete
    assert not found.failures
    cell = found.cell("layer_norm", 8)
    assert {run.trial.options for run in cell.tuning} == {(), (("weight_decay", 0.1),), (("weight_decay", 10.0),)}
    assert {run.trial.options for run in cell.runs} == {cell.options}
    # As many further settings at one rate for one method as for the other.
    tried = [sum(bool(run.trial.options) for run in found.cell(m, 8).tuning) for m in ("none", "layer_norm")]
    assert tried == [4, 4]


def test_a_subset_keeps_the_first_samples() -> None:
    task = Task(net, (X, Y), (X, Y))
    assert len(subset(task, 10).train) == 10
    with pytest.raises(ArgumentError, match="a subset has 1 to 96 samples, got 97"):
        subset(task, 97)
    assert subset(task, 10).fingerprint() != task.fingerprint()


def test_parts_of_trees_of_tensors() -> None:
    part = Part(({"ids": X, "mask": Y}, Y))
    inputs, targets = part.take(torch.tensor([2, 4]))
    assert torch.equal(inputs["ids"], X[[2, 4]])
    assert torch.equal(targets, Y[[2, 4]])
    assert len(part.cut(torch.arange(7))) == 7
