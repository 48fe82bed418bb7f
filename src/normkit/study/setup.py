"""From what the user asks for to benches and experiments, all of it checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from normkit.errors import ArgumentError
from normkit.study import embedded
from normkit.study.arms import OF_LAYERS
from normkit.study.claims import chosen
from normkit.study.claims.benches import BENCHES, MAIN
from normkit.study.claims.experiment import Experiment
from normkit.study.conduct import Bench
from normkit.study.design import Design, design
from normkit.study.task import Task

OWN_METHODS = ("unchanged", "batch_norm", "layer_norm", "instance_norm", "group_norm", "weight_norm")
"""What a model of the user's is put under, as far as it has a place for it."""


def prepared(
    task: Task | None,
    methods: Sequence[str] | None,
    batch_sizes: Sequence[int],
    seeds: int,
    trials: int,
    steps: int | None,
    claims: Sequence[str] | bool | None,
    full: bool,
    device: str,
    seed: int,
) -> tuple[list[Bench], tuple[Experiment, ...]]:
    """The benches, that of the answer first, and the experiments that read from them; arguments as in `compare`."""
    work = embedded.digits(seed) if task is None else task
    if task is not None and not isinstance(task, Task):
        raise ArgumentError(f"task must be a normkit.Task, got {type(task).__name__}: make one of your model and data")
    asked = tuple(methods) if methods is not None else (embedded.METHODS if task is None else OWN_METHODS)
    plan = design(asked, tuple(batch_sizes), seeds, trials, work.max_steps if steps is None else steps, seed)
    plan = replace(
        plan, lowest_rate=work.rates[0], highest_rate=work.rates[1], smallest=work.smallest or 0.01, device=device
    )
    if task is None:
        unknown = [name for name in plan.methods if name not in embedded.METHODS]
        if unknown:
            raise ArgumentError(
                f"the embedded network can be built under {', '.join(embedded.METHODS)}, got {', '.join(unknown)}: "
                "leave it out, or give a task of yours"
            )
    else:
        plan = _buildable(work, plan, strict=methods is not None)
    if plan.batch_sizes[-1] > len(work.train):
        raise ArgumentError(
            f"batch sizes must be at most {len(work.train)}, the number of samples to train on, "
            f"got {plan.batch_sizes[-1]}: choose smaller ones"
        )
    main = Bench(MAIN, work, plan, timed=True)
    if task is not None or claims is False:
        return [main], ()
    experiments = chosen(None if claims is None or claims is True else claims, full=full)
    names = dict.fromkeys(name for experiment in experiments for name in experiment.benches if name != MAIN)
    benches = [main, *(BENCHES[name](full) for name in names)]
    for bench in benches[1:]:
        bench.design = replace(bench.design, seed=seed, device=device)
    return benches, tuple(e for e in experiments if _has_arms(e, main))


def _has_arms(experiment: Experiment, main: Bench) -> bool:
    """Whether the comparison trains what the experiment reads from it."""
    have = {(method, size) for method in main.design.methods for size in main.design.batch_sizes}
    return all((arm, size) in have for bench, arm, size in experiment.arms if bench == MAIN)


def _buildable(task: Task, plan: Design, strict: bool) -> Design:
    """The design with the methods that the model has a place for; asked for by name, a method must have one."""
    able = []
    for method in plan.methods:
        try:
            task.build(method, 0)
            able.append(method)
        except ArgumentError:
            if strict or method == "none":
                raise
    if not set(able) & {*OF_LAYERS, "weight_norm", "unchanged"}:
        raise ArgumentError("the model must have a place for some norm, and no method finds one: name one to see why")
    return replace(plan, methods=tuple(able))


def made(folder: Path) -> Path:
    """The folder of the report, which exists afterwards."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(
            f"out must be a folder, or a place where one can be made, got {str(folder)!r} ({error.strerror}): "
            "name another"
        ) from error
    return folder
