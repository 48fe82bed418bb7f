"""How many copies and samples fit into memory: the sizes of batches of trials and of evaluation batches.

One step of a copy is measured by what it saves for its backward pass. The peaks relative to it were measured with
convolutional networks at 64 x 64 pixels and with a Transformer, 8 and 14 copies each: 1.3 to 2.4 in training, 0.2 to
0.7 in evaluation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from normkit.study.task import Task
from normkit.study.training.cost import step_memory
from normkit.study.training.design import Design
from normkit.study.training.evaluation import CHUNK
from normkit.study.training.trial import Trial

SHARE = 0.5
"""The part of the available memory that all processes of a study may use."""
TRAINING, EVALUATION = 2.5, 1.5
"""Peaks of a training step and of an evaluation batch, relative to the bytes that a training step saves."""
WEIGHTS = 5
"""Parameters of a copy, their gradients, two averages of an optimizer and one copy more."""


@dataclass(frozen=True)
class Sizes:
    """The numbers of copies that are trained at once, and of samples in an evaluation batch of each of them."""

    copies: int
    evaluation: int


@dataclass(frozen=True)
class Need:
    """What a copy of a model needs.

    Attributes:
        batch_size: samples in a training step.
        saved: bytes that a training step saves for its backward pass; None if the step fails.
        weights: bytes of the parameters.
        evaluation: samples in an evaluation batch, if the task says so.
    """

    batch_size: int
    saved: int | None
    weights: int
    evaluation: int | None

    def sizes(self, wanted: int, budget: float) -> Sizes:
        """The sizes that fit.

        Args:
            wanted: the number of trials.
            budget: bytes that this process may use.
        """
        if self.saved is None:
            # The step fails; the run will say why.
            return Sizes(wanted, self.evaluation or CHUNK)
        most = budget / max(1.0, TRAINING * self.saved + WEIGHTS * self.weights)
        copies = max(1, min(wanted, int(most)))
        samples = budget / max(1.0, EVALUATION * copies * self.saved / self.batch_size)
        return Sizes(copies, self.evaluation or max(1, min(CHUNK, int(samples))))


def need(task: Task, design: Design, trial: Trial) -> Need:
    """What a copy of the model of a trial needs, measured by one step; `Task.evaluation_batch` is taken as it is."""
    saved = step_memory(task, design, trial.method, trial.batch_size)
    if saved is None:
        return Need(trial.batch_size, None, 0, task.evaluation_batch)
    with torch.random.fork_rng(devices=[]):
        weights = sum(t.untyped_storage().nbytes() for t in task.build(trial.method, trial.seed).parameters())
    return Need(trial.batch_size, saved, weights, task.evaluation_batch)


def budget(device: str, processes: int) -> float:
    """Bytes that each of some processes on this machine may use on a device."""
    if torch.device(device).type == "cuda":
        return SHARE * torch.cuda.mem_get_info(torch.device(device))[0] / processes
    return SHARE * available() / processes


def available(root: Path = Path("/")) -> float:
    """Bytes of main memory that are free or can be freed, within the limits of containers.

    Args:
        root: the folder that has proc and sys.

    >>> available() > 0
    True
    """
    return min(_free(root), *_allowances(root), float(2**60))


def _free(root: Path) -> float:
    with suppress(OSError, ValueError, IndexError):
        lines = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
        return 1024.0 * int(lines["MemAvailable"].split()[0])
    with suppress(OSError, ValueError, AttributeError):
        # macOS tells only all of it.
        return 0.5 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4.0 * 2**30


def _allowances(root: Path) -> Iterator[float]:
    """What the limits of this process's control group and those above it leave, in both versions of their files."""
    forms = (
        ("sys/fs/cgroup", "", "memory.max", "memory.current", "inactive_file"),
        ("sys/fs/cgroup/memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            for top, controller, limit, usage, cache in forms:
                if controller in controllers.split(","):
                    folder = root / top / place.lstrip("/")
                    for each in (folder, *folder.parents):
                        if each.is_relative_to(root / top):
                            yield from _left(each, limit, usage, cache)


def _left(folder: Path, limit: str, usage: str, cache: str) -> Iterator[float]:
    # Not all groups have a limit, and "max" is none.
    with suppress(OSError, ValueError):
        most, used = (float(int((folder / name).read_text())) for name in (limit, usage))
        freed = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines()).get(cache, "0")
        yield max(0.0, most - used + int(freed))
