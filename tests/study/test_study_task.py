"""A user's own model and data: what may be given, what is refused, and that a small task works on the first try."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import optuna
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

import normkit
from normkit.errors import ArgumentError, NormkitError
from normkit.study import arms, outline, replicas, setup, train
from normkit.study.design import Design
from normkit.study.run import Job
from normkit.study.task import Part, Task, subset
from normkit.tools import walk

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
        ({"train": (X, Y[:5])}, r"train must be a pair of tensors with one length, got lengths \[5, 120\]"),
        ({"test": []}, "test must be a torch Dataset with a length or a pair of tensors"),
        ({"test": (X[:0], Y[:0])}, "test must have samples, got none"),
        ({"train": (X[:1], Y[:1])}, "train must have at least 2 samples to choose rates on one of them, got 1"),
        ({"loss": None}, "loss must be a function, got None"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"rates": (1.0, 0.1)}, r"rates must be a lowest and a higher learning rate above 0, got \(1.0, 0.1\)"),
        ({"search": {"momentum": []}}, r"search\['momentum'\] must be a sequence of values or an optuna distribution"),
    ],
)
def test_a_task_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Task(**{"model": net, "train": (X, Y), "test": (X, Y)} | change)  # type: ignore[arg-type]


def test_a_data_loader_is_answered_with_its_data_set() -> None:
    loader = torch.utils.data.DataLoader(Rows())
    with pytest.raises(ArgumentError, match=r"got DataLoader: for a DataLoader give its \.dataset"):
        Task(net, loader, (X, Y))


@pytest.mark.parametrize("method", ["batch_norm", "layer_norm", "rms_norm", "weight_norm"])
def test_norms_are_put_into_a_model_that_has_none(method: str) -> None:
    task = Task(net, (X, Y), (X, Y))
    plain, normed = task.build("none", 3), task.build(method, 3)
    changed = [
        m for m in normed.modules() if hasattr(m, "parametrizations") or type(m).__module__.startswith("normkit")
    ]
    assert changed
    assert normed(X).shape == (120, 3)
    # The last layer gives the classes; a norm there would change what it may say.
    assert torch.equal(normed[-1].weight, plain[-1].weight)
    assert type(normed[-1]) is nn.Linear


class Normed(nn.Module):
    """A small convolutional net with norms of its own."""

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
    assert not list(walk.norms(plain))
    # Scale and shift stay: only the normalizing is gone.
    assert len(list(plain.parameters())) == len(list(task.build("batch_norm", 1).parameters()))


def test_a_model_without_a_place_for_a_norm_is_refused() -> None:
    task = Task(lambda: nn.Sequential(nn.Flatten()), (torch.randn(20, 3), torch.randint(0, 3, (20,))), (X[:, :3], Y))
    with pytest.raises(ArgumentError, match="needs a place in the model, and there is none"):
        arms.applied(nn.Sequential(nn.Flatten()), "batch_norm", torch.randn(2, 3))
    with pytest.raises(ArgumentError, match="the model must have a place for some norm"):
        setup.prepared(task, batch_sizes=[2])


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
            "metric must give a finite number, got nan on 120 samples: look at what it divides by",
        ),
        (
            {"loss": lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none")},
            "loss must give one finite number as a tensor, got tensor",
        ),
        ({"loss": lambda outputs, targets: outputs.sum() * float("inf")}, "loss must give one finite number"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(change: dict[str, object], message: str, tmp_path: Path) -> None:
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
    assert {run.job.options for run in cell.tuning} == {(), (("weight_decay", 0.1),), (("weight_decay", 10.0),)}
    assert {run.job.options for run in cell.runs} == {cell.options}
    # As many further settings at one rate for one method as for the other.
    tried = [sum(bool(run.job.options) for run in found.cell(m, 8).tuning) for m in ("none", "layer_norm")]
    assert tried == [4, 4]


def test_settings_are_drawn_once_and_alike() -> None:
    search = {"weight_decay": optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True), "nesterov": [True, False]}
    first, second = (setup.drawn(search, 7, seed=3) for _ in range(2))
    assert first == second
    assert len(set(first)) == 6
    assert all(1e-5 <= dict(options)["weight_decay"] <= 1e-1 for options in first)
    assert setup.drawn({}, 7, seed=0) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "cuda:9"}, "device must be one that torch can use here, got 'cuda:9'"),
        ({"device": "gpu"}, "device must be one that torch can use here, got 'gpu'"),
        ({"dtype": "bf16"}, "dtype must be one of float32, float64, bfloat16, got 'bf16': did you mean 'bfloat16'"),
        ({"task": net}, "task must be a normkit.Task, got function"),
        ({"batch_sizes": [97]}, "batch sizes must be at most 96, the number of samples to train on, got 97"),
    ],
)
def test_a_study_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        setup.prepared(**{"task": Task(net, (X, Y), (X, Y))} | change)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_precisions_train(dtype: str) -> None:
    task = Task(net, (X, Y), (X, Y))
    jobs = [Job("measure", "batch_norm", 16, rate, 1) for rate in (0.05, 0.2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs = train.execute(task, Design(("none", "batch_norm"), (16,), 2, 3, 60, dtype=dtype), jobs)
    assert [run.state for run in runs] == ["trained", "trained"], runs
    assert all(run.test_error is not None and run.test_error < 0.45 for run in runs)


def test_a_subset_keeps_the_first_samples() -> None:
    task = Task(net, (X, Y), (X, Y))
    assert len(subset(task, 10).train) == 10
    with pytest.raises(ArgumentError, match="a subset has 1 to 96 samples, got 97"):
        subset(task, 97)
    assert subset(task, 10).fingerprint() != task.fingerprint()


@pytest.mark.parametrize("method", ["none", "batch_norm", "layer_norm", "weight_norm"])
def test_stacked_copies_are_trained_as_they_are_alone(method: str) -> None:
    task = Task(net, (X, Y), (X, Y))
    plan = Design(("none", method), (8,), 2, 3, 30, window=10)
    jobs = [Job("measure", method, 8, rate, seed) for rate in (0.01, 0.1) for seed in (1, 2, 3)]
    assert replicas.can_be_stacked(lambda seed: task.build(method, seed), task.loss, X[:8], Y[:8])
    together, apart = (train._train(task, plan, jobs, stacked=stacked) for stacked in (True, False))
    for a, b in zip(together, apart, strict=True):
        # Sums in another order over 30 steps: rounding grows along the way.
        assert a.losses == pytest.approx(b.losses, rel=2e-2, abs=2e-3)
        assert a.job == b.job


def test_dropout_is_not_stacked_and_trains_all_the_same() -> None:
    task = Task(lambda: nn.Sequential(net(), nn.Dropout(0.5)), (X, Y), (X, Y))
    assert not replicas.can_be_stacked(lambda seed: task.build("none", seed), task.loss, X[:8], Y[:8])
    runs = train.execute(task, Design(("none",), (8,), 2, 3, 40), [Job("tune", "none", 8, 0.1, s) for s in (1, 2)])
    assert [run.state for run in runs] != ["failed", "failed"]


def test_numbers_that_are_in_no_buffer_are_not_stacked() -> None:
    class Projected(nn.Module):
        """Its random directions are a plain attribute, another one in each copy."""

        def __init__(self) -> None:
            super().__init__()
            self.directions, self.head = torch.randn(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x @ self.directions)

    task = Task(Projected, (X, Y), (X, Y))
    assert not replicas.can_be_stacked(lambda seed: task.build("none", seed), task.loss, X[:8], Y[:8])


def test_a_step_that_looks_at_values_is_not_written_down() -> None:
    def step(parameters: object, buffers: object, inputs: Tensor, targets: Tensor) -> tuple[Tensor, list[Tensor]]:
        factor = 2.0 if float(inputs[0, 0]) > 0 else 1.0
        return factor * inputs.sum(1), [inputs * factor]

    batches = torch.tensor([[1.0, 2.0], [-1.0, 2.0]])
    assert replicas._written(step, ({}, {}, batches, batches)) is None
    assert replicas._written(lambda p, b, x, y: (x.sum(1), [x * y]), ({}, {}, batches, batches)) is not None


@pytest.mark.parametrize("fused", [False, True])
def test_parameters_lie_as_their_gradients_come_and_descend_all_the_same(fused: bool) -> None:
    def optimizer(parameters: list[Tensor], rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, rate, momentum=0.9, fused=fused)

    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

    torch.manual_seed(0)
    x, y = torch.randn(8, 4, 2, 6), torch.randint(3, (8, 4, 2))
    settings = [(0.1, ()), (0.1, ()), (0.3, ()), (0.3, ())]
    stacked, again = (replicas.Stacked([make(i) for i in range(4)], known) for known in [{}] for _ in range(2))
    apart = replicas.Apart([make(i) for i in range(4)])
    for copies in (stacked, again, apart):
        copies.optimize(optimizer, settings)
        for inputs, targets in zip(x, y, strict=True):
            losses = copies.step(F.cross_entropy, inputs, targets)
    weight = stacked.parameters["0.weight"]
    assert weight.stride() == (30, 1, 5)
    assert all(part.is_contiguous() and part.grad.is_contiguous() for part, _, _ in stacked.parts)
    for name, parameter in stacked.parameters.items():
        assert torch.equal(parameter, again.parameters[name])
        alone = torch.stack([model.get_parameter(name) for model in apart.models])
        torch.testing.assert_close(parameter, alone, rtol=1e-4, atol=1e-5)  # sums in another order, eight steps
    assert losses.isfinite().all()


def test_an_optimizer_that_looks_at_whole_tensors_gets_each_copy_alone() -> None:
    class Clipped(torch.optim.SGD):
        """Its step depends on the norm of all gradients together."""

        def step(self, closure: None = None) -> None:  # type: ignore[override]
            nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 0.1)
            super().step(closure)

    task = Task(net, (X, Y), (X, Y), optimizer=Clipped)
    plan = Design(("none",), (8,), 2, 3, 30, window=10)
    jobs = [Job("tune", "none", 8, 0.1, seed) for seed in (1, 2)]
    together, apart = (train._train(task, plan, jobs, stacked=stacked) for stacked in (True, False))
    for a, b in zip(together, apart, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-2)


def test_parts_of_trees_of_tensors() -> None:
    part = Part(({"ids": X, "mask": Y}, Y))
    inputs, targets = part.take(torch.tensor([2, 4]))
    assert torch.equal(inputs["ids"], X[[2, 4]])
    assert torch.equal(targets, Y[[2, 4]])
    assert len(part.cut(torch.arange(7))) == 7


README = Path(__file__).parents[2] / "README.md"


def test_the_task_of_the_readme_works_on_the_first_try(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(# mine\.py\n.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 20
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "normkit", "compare", "mine:task", "--batch-sizes", "16", "--seeds", "2"]
    command += ["--trials", "3", "--steps", "60", "--workers", "2", "--no-progress", "--methods", "unchanged,GN"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "As it is" in done.stdout
    results = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    assert {cell["method"] for cell in results["cells"]} == {"none", "unchanged", "group_norm"}
    assert not results["failures"]
    assert all(cell["error"]["value"] < 0.5 for cell in results["cells"])
    assert results["command"].startswith("normkit compare mine:task --methods none,unchanged,group_norm")


def test_the_plan_does_not_call_a_task_of_the_users_by_the_name_of_ours() -> None:
    assert [bench.name for bench in setup.prepared(Task(net, (X, Y), (X, Y)), batch_sizes=[2])[0]] == ["task"]


def test_the_plan_is_timed_on_one_thread_as_the_workers_train() -> None:
    seen = set()

    def loss(y: Tensor, target: Tensor) -> Tensor:
        seen.add(torch.get_num_threads())
        return F.cross_entropy(y, target)

    before = torch.get_num_threads()
    task = Task(net, (X, Y), (X, Y), loss=loss)
    torch.set_num_threads(2)
    try:
        benches, _ = setup.prepared(task, methods=["BN"], batch_sizes=[8], seeds=2, trials=3, steps=40)
        seen.clear()
        assert outline.outline(benches, 2).rows[0].seconds > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {1}
