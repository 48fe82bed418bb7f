"""Copies and evaluation batches are sized by the memory that is left, also in a container."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from normkit.study.task import Task
from normkit.study.training import design, memory
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Trial

X = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
SEEN: list[int] = []


class Net(nn.Sequential):
    """A model that notes the sizes of its batches in evaluation."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 2))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            SEEN.append(x.shape[-2])
        return super().forward(x)


DATA = (X, (X[:, 0] > 0).long())
TASK = Task(Net, DATA, DATA)
PLAN = replace(design.design(("none",), (8,), 2, 3, 40, 0), gap_images=16)
TRIALS = [Trial("measure", "none", 8, 0.1, seed) for seed in range(6)]
WEIGHTS = 4 * sum(p.numel() for p in Net().parameters())


def test_few_copies_are_trained_at_once_where_memory_is_short() -> None:
    plenty = memory.need(TASK, PLAN, TRIALS[0]).sizes(6, budget=1e9)
    assert plenty == memory.Sizes(6, memory.CHUNK)
    # Weights and their gradients count too; the rest is that of a step: inputs, outputs of both layers.
    short = memory.need(TASK, PLAN, TRIALS[0]).sizes(6, budget=2.5 * (memory.WEIGHTS * WEIGHTS + 8 * 4 * 300 * 2.5))
    assert short.copies == 2
    assert memory.need(TASK, PLAN, TRIALS[0]).sizes(6, budget=1.0) == memory.Sizes(1, 1)
    # A step that fails limits nothing: the run itself says why it failed.
    broken = replace(TASK, loss=lambda outputs, targets: 1 / 0)
    assert memory.need(broken, PLAN, TRIALS[0]).sizes(6, budget=1.0) == memory.Sizes(6, memory.CHUNK)


def test_a_short_memory_changes_no_result() -> None:
    whole = Trainer().execute(TASK, PLAN, TRIALS)
    SEEN.clear()
    short = Trainer(budget={"cpu": memory.WEIGHTS * WEIGHTS * 2.9}).execute(TASK, PLAN, TRIALS)
    assert max(SEEN) < len(X)
    for one, other in zip(whole, short, strict=True):
        # Sums of 40 losses in fp32 in another order.
        assert one.losses == pytest.approx(other.losses, rel=1e-3)
        assert (one.trial, one.state) == (other.trial, other.state)
        # Fractions of the same samples, summed over other batches in fp64.
        assert one.test_error == pytest.approx(other.test_error, abs=1e-12)


def test_an_evaluation_batch_of_the_task_is_kept() -> None:
    task = Task(Net, DATA, DATA)
    object.__setattr__(task, "evaluation_batch", 7)
    assert memory.need(task, PLAN, TRIALS[0]).sizes(6, budget=1.0) == memory.Sizes(1, 7)


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_memory_of_a_machine_and_the_limits_of_both_kinds_of_groups(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", "MemTotal:  9000 kB\nMemAvailable:  8000 kB\n")
    assert memory.available(tmp_path) == 8000 * 1024
    write(tmp_path, "proc/self/cgroup", "0::/user/job\n")
    group = "sys/fs/cgroup/user"
    # No limit of its own; that of the group above leaves 3000 bytes and a cache of 500.
    write(tmp_path, f"{group}/job/memory.max", "max\n")
    write(tmp_path, f"{group}/job/memory.current", "1000\n")
    write(tmp_path, f"{group}/memory.max", "5000\n")
    write(tmp_path, f"{group}/memory.current", "2000\n")
    write(tmp_path, f"{group}/memory.stat", "anon 1500\ninactive_file 500\n")
    assert memory.available(tmp_path) == 3500
    write(tmp_path, "proc/self/cgroup", "4:cpu,memory:/job\n")
    write(tmp_path, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", "4000\n")
    write(tmp_path, "sys/fs/cgroup/memory/job/memory.usage_in_bytes", "1000\n")
    write(tmp_path, "sys/fs/cgroup/memory/job/memory.stat", "total_inactive_file 0\n")
    assert memory.available(tmp_path) == 3000
    assert memory.budget("cpu", 4) == pytest.approx(memory.budget("cpu", 2) / 2, rel=0.5)
