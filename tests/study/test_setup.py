"""A study of a user's own task: its arguments, its plan, and the example of the README."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from made_up import prepared
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

import normkit
from normkit import study
from normkit.cli import app
from normkit.errors import ArgumentError
from normkit.study import outline, setup
from normkit.study.execution.workload import Workload
from normkit.study.suite import networks
from normkit.study.task import Task, embedded
from normkit.study.training import design
from normkit.study.training.design import Design
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Run, Trial

GENERATOR = torch.Generator().manual_seed(0)


X = torch.randn(120, 6, generator=GENERATOR)


Y = (X @ torch.randn(6, 3, generator=GENERATOR)).argmax(1)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


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
        prepared(**{"task": Task(net, (X, Y), (X, Y))} | change)  # type: ignore[arg-type]


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def test_the_model_as_it_is_is_not_trained_twice() -> None:
    (workload,), _ = prepared(Task(convolutions, (X, Y), (X, Y)), batch_sizes=[8])
    assert "unchanged" not in workload.design.methods
    assert {"batch_norm", "rms_norm"} <= {*workload.design.methods}
    ((_, text),) = workload.notes
    assert str(text).startswith("All norms of the model are batch norm already, so batch norm is")
    named, _ = prepared(Task(convolutions, (X, Y), (X, Y)), batch_sizes=[8], methods=["unchanged", "BN"])
    assert named[0].design.methods == ("none", "unchanged", "batch_norm")
    mixed = Task(lambda: nn.Sequential(convolutions(), nn.LayerNorm(3)), (X, Y), (X, Y))
    assert "unchanged" in prepared(mixed, batch_sizes=[8])[0][0].design.methods


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        normkit.compare(
            Task(net, (X, Y), (X, Y)),
            methods=["BN", "group_nrom"],
            seeds=1,
            steps=10,
            claims=["BN-4"],
            minutes=-5,
            device="cuda:9",
            workers=0,
            executor="prozesses",
            lang="de",
            out=tmp_path / "out",
        )
    first, *lines = str(caught.value).splitlines()
    assert first == "9 arguments must be corrected:"
    starts = (
        "- seeds must be at least 2, got 1",
        "- steps must be at least 40, got 10",
        "- no normalization is called 'group_nrom'",
        "- claims have tasks of their own and are measured without another, got claims BN-4 with a task",
        "- minutes must be at least 0, got -5",
        "- device must be one that torch can use here, got 'cuda:9'",
        "- workers must be at least 1, got 0",
        "- executor must be one of processes, ray, got 'prozesses'",
        "- the page exists in en and zh, got 'de'",
    )
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=True)] == [True] * 9, lines
    assert not (tmp_path / "out").exists()


def test_mistakes_are_named_before_a_task_is_imported() -> None:
    result = CliRunner().invoke(app, ["compare", "no_such_module:task", "--claims", "BN-4", "--minutes", "-1"])
    assert result.exit_code == 2
    assert "2 arguments must be corrected" in result.output
    assert "no_such_module" not in result.output


def test_the_command_repeats_the_whole_study() -> None:
    plan = replace(design.design(("BN",), (8,), 3, 3, 40, 5), device="meta", dtype="bfloat16")
    command = study._command(plan, None, None, True, True)
    assert command == (
        "normkit compare --methods none,batch_norm --batch-sizes 8 --seeds 3 --trials 3 --steps 40 --seed 5 --full "
        "--device meta --dtype bfloat16"
    )


def test_optuna_says_nothing_and_keeps_the_verbosity_of_the_user(capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    setup.drawn({"weight_decay": [0.0, 1e-4]}, 7, seed=0)
    assert capfd.readouterr().err == ""
    assert optuna.logging.get_verbosity() == before


README = Path(__file__).parents[2] / "README.md"


def test_the_task_of_the_readme_works_on_the_first_try(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(# mine\.py\n.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 20
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "normkit", "compare", "mine:task", "--batch-sizes", "16", "--seeds", "2"]
    command += ["--trials", "3", "--steps", "60", "--workers", "1", "--no-progress", "--methods", "unchanged,GN"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "As it is" in done.stdout
    results = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    assert {cell["method"] for cell in results["cells"]} == {"none", "unchanged", "group_norm"}
    assert not results["failures"]
    assert all(cell["error"]["value"] < 0.5 for cell in results["cells"])
    assert results["command"].startswith("normkit compare mine:task --methods none,unchanged,group_norm")


def test_the_plan_does_not_call_a_task_of_the_users_by_the_name_of_ours() -> None:
    assert [workload.name for workload in prepared(Task(net, (X, Y), (X, Y)), batch_sizes=[2])[0]] == ["task"]


def test_the_plan_is_timed_on_one_thread_as_the_workers_train() -> None:
    seen = set()

    def loss(y: Tensor, target: Tensor) -> Tensor:
        seen.add(torch.get_num_threads())
        return F.cross_entropy(y, target)

    before = torch.get_num_threads()
    task = Task(net, (X, Y), (X, Y), loss=loss)
    torch.set_num_threads(2)
    try:
        workloads, _ = prepared(task, methods=["BN"], batch_sizes=[8], seeds=2, trials=3, steps=40)
        seen.clear()
        assert outline.outline(workloads, 2).rows[0].seconds > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


def test_workloads_with_the_same_network_are_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    execute = Trainer.execute

    def counted(self: Trainer, task: Task, plan: Design, trials: Sequence[Trial]) -> list[Run]:
        trained.append(task.arms.keywords["width"])  # type: ignore[union-attr]
        return execute(self, task, plan, trials)

    monkeypatch.setattr(Trainer, "execute", counted)
    plan = Design(("layer_norm",), (8,), 2, 3, 40, lowest_rate=1e-2, highest_rate=0.1)
    tasks = [embedded.characters(1, width, optimizer) for width in (16, 32) for optimizer in ("adamw", "sgd")]
    rows = outline.outline([Workload(f"{i}", task, plan) for i, task in enumerate(tasks)], 1).rows
    assert trained == [16, 16, 32, 32]
    assert rows[0].seconds == rows[1].seconds > 0
    assert rows[2].seconds == rows[3].seconds > 0


def test_methods_beyond_the_usual_ones_are_trained_where_they_are_named(tmp_path: Path) -> None:
    usual = ("none", "batch_norm", "layer_norm", "instance_norm", "group_norm", "weight_norm")
    assert prepared()[0][0].design.methods == usual
    more = [name for name in embedded.BUILDABLE if name not in usual]
    assert {"rms_norm", "filter_response_norm", "evo_norm_b0", "evo_norm_s0", "dynamic_tanh", "dynamic_erf"} <= {*more}
    main = prepared(methods=["none", "DyT", "Derf", "EvoNorm-S0", "FRN"], claims=False)[0][0]
    assert main.design.methods == ("none", "dynamic_tanh", "dynamic_erf", "evo_norm_s0", "filter_response_norm")
    with pytest.raises(ArgumentError, match=r"can be built under none, .*evo_norm_b0.*, got scale_norm"):
        prepared(methods=["none", "scale_norm"])


@pytest.mark.parametrize("method", [name for name in embedded.BUILDABLE if name not in embedded.METHODS])
def test_a_variant_has_its_norms_and_no_second_activation(method: str) -> None:
    plain, net = (networks.convnet(name, 3, channels=((4, 1), (8, 2))) for name in ("none", method))
    trained = dict(net[0].named_parameters())  # of a weight under a norm, the one that is not divided
    weight = trained.get("weight", trained.get("parametrizations.weight.original"))
    assert torch.equal(plain[0].weight, weight)
    kinds = [type(layer).__name__ for layer in net]
    assert kinds.count("ReLU") == (0 if method in ("filter_response_norm", "evo_norm_b0", "evo_norm_s0") else 2)
    assert net(torch.randn(3, 1, 8, 8)).shape == (3, 10)
