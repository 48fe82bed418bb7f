"""Turns the arguments of `compare` into workloads and experiments, and checks them before anything runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna import create_study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import RandomSampler

from normkit.catalog import Text
from normkit.errors import ArgumentError
from normkit.study.arguments import check_place
from normkit.study.claims import chosen
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.workloads import MAIN, WORKLOADS
from normkit.study.execution.database import quiet
from normkit.study.execution.workload import Workload
from normkit.study.report.writing.formatting import inline
from normkit.study.suite.networks import UNFIT
from normkit.study.task import Task, embedded
from normkit.study.task.variants import OF_LAYERS, OF_WEIGHTS
from normkit.study.training.design import Design, design
from normkit.study.training.rehearsal import rehearse, with_epochs
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Options, frozen
from normkit.tools.model.tree import norms

Notes = tuple[tuple[Text, Text], ...]
"""Headings and texts for the report."""
OWN_METHODS = ("unchanged", *embedded.METHODS[1:], "rms_norm")
"""The methods for a user's model, if their norms can be placed in it."""


def prepared(
    task: Task | None,
    *,
    methods: Sequence[str] | None,
    batch_sizes: Sequence[int],
    seeds: int,
    trials: int | None,
    steps: int | None,
    claims: Sequence[str] | bool | None,
    full: bool,
    device: str,
    dtype: str,
    seed: int,
    discard: bool | None,
) -> tuple[list[Workload], tuple[Experiment, ...]]:
    """The workloads, with that of the comparison first, and their experiments; arguments as in `compare`."""
    if task is not None and not isinstance(task, Task):
        raise ArgumentError(f"task must be a normkit.Task, got {type(task).__name__}: make one of your model and data")
    check_place(device, dtype)
    work = embedded.digits(seed) if task is None else task
    usual = embedded.METHODS if task is None else task.methods or OWN_METHODS
    asked = tuple(methods) if methods is not None else usual
    length = work.max_steps if steps is None else steps
    count = work.trials if trials is None else trials
    plan = design(asked, tuple(batch_sizes), seeds, count, length if work.max_epochs is None else 40, seed)
    work = work.read(length * plan.batch_sizes[-1] * work.accumulate)
    plan = replace(
        plan,
        lowest_rate=work.rates[0],
        highest_rate=work.rates[1],
        smallest=work.smallest or 0.01,
        target_loss=work.target_loss,
        higher_is_better=work.scheme.higher_is_better,
        device=device,
        dtype=dtype,
        options=drawn(work.search, count, seed),
        confirm=True,
    )
    if plan.batch_sizes[-1] > len(work.train):
        raise ArgumentError(
            f"batch sizes must be at most {len(work.train)}, the number of samples to train on, "
            f"got {plan.batch_sizes[-1]}: choose smaller ones"
        )
    if steps is not None and work.max_epochs is not None:
        work = replace(work, max_epochs=None)
        plan = replace(plan, steps=steps)
    plan = with_epochs(work, plan)
    notes: Notes = ()
    if task is None:
        _check_buildable(plan.methods)
    else:
        plan, notes = _buildable(work, plan, strict=methods is not None)
    plan = replace(_with_discards(work, plan, discard), chance=work.chance)
    main = Workload(MAIN if task is None else "task", work, plan, timed=True, notes=notes)
    # Claims are about all methods; who names some wants no other trained.
    wanted = (methods is None) if claims is None else claims
    if wanted is False or (task is not None and not task.claims):
        return [main], ()
    # A task with claims of its own is asked for because of them, so they are measured in full.
    full = full or bool(work.claims)
    asked_for = chosen(wanted if isinstance(wanted, Sequence) else work.claims or None, full=full)
    _check_measurable(asked_for, work)
    experiments = tuple(experiment for experiment in asked_for if _has_cells(experiment, main))
    others = list(_workloads(experiments, full))
    for workload in others:
        workload.design = replace(workload.design, seed=seed, device=device, dtype=dtype)
    return [main, *others], experiments


def _check_measurable(experiments: Sequence[Experiment], task: Task) -> None:
    """Refuse claims that are not measured with a task that has claims of its own."""
    others = dict.fromkeys(e.claim for e in experiments if task.claims and e.claim not in task.claims)
    if others:
        raise ArgumentError(
            f"with {task.origin} the claims {', '.join(task.claims)} are measured, got {', '.join(others)}: leave the "
            "task out to measure others"
        )


def _with_discards(task: Task, plan: Design, asked: bool | None) -> Design:
    """The design with rates discarded early if that is asked for, or else if it saves time.

    It does not if copies of the model are trained all at once: a smaller batch of trials takes nearly as long.
    """
    if asked is None:
        # Copies are tried only where rates could be discarded, because that takes a second.
        able = replace(plan, discard=True).discards
        asked = able and (plan.stack < 2 or not Trainer().stacks(task, plan.methods[-1], plan.batch_sizes[0]))
    return replace(plan, discard=asked)


def _check_buildable(methods: Sequence[str]) -> None:
    """Refuse methods that the built-in network cannot be built with, with the reason and the task that has a place."""
    unknown = [name for name in methods if name not in embedded.BUILDABLE]
    if unknown:
        homes = {"revin": "forecast", "scale_norm": "characters"}
        why = "; ".join(UNFIT.get(name, f"{name} has no place in it") for name in unknown)
        elsewhere = [f"normkit compare {homes[name]} --methods {name}" for name in unknown if name in homes]
        raise ArgumentError(
            f"the built-in network can be built under {', '.join(embedded.BUILDABLE)}, got {', '.join(unknown)} "
            f"({why}): leave it out, or give {' or '.join(elsewhere) or 'your own task'}"
        )


def _workloads(experiments: Sequence[Experiment], full: bool) -> Iterable[Workload]:
    """The workloads of some experiments besides the comparison, with the variants that these experiments use alone."""
    used: dict[str, set[str]] = {}
    for where, variant, _ in (cell for experiment in experiments for cell in experiment.cells):
        used.setdefault(where, set()).add(variant)
    for name in used:
        if name != MAIN:
            workload = WORKLOADS[name](full)
            methods = tuple(variant for variant in workload.design.methods if variant in used[name])
            workload.design = replace(workload.design, methods=methods)
            yield workload


def drawn(search: Mapping[str, Any], count: int, seed: int) -> tuple[Options, ...]:
    """Settings to try in addition to the defaults, drawn from the search space of a task without repetition.

    >>> drawn({"weight_decay": [0.0, 1e-4]}, 7, seed=0)
    ((('weight_decay', 0.0),), (('weight_decay', 0.0001),))
    """
    if not search:
        return ()
    for name, values in search.items():
        for each in () if isinstance(values, BaseDistribution) else values:
            _check_storable(name, each)
    # By their numbers, because optuna warns of tuples.
    kinds = {
        name: values if isinstance(values, BaseDistribution) else CategoricalDistribution(range(len(values)))
        for name, values in search.items()
    }

    def value(name: str, drawn: Any) -> Any:
        return frozen(drawn if isinstance(search[name], BaseDistribution) else search[name][drawn])

    with quiet():
        study = create_study(sampler=RandomSampler(seed=seed))
    found: dict[Options, None] = {}
    # A small search space returns the same settings again.
    for _ in range(20 * count):
        if len(found) < count - 1:
            found[tuple(sorted((name, value(name, got)) for name, got in study.ask(kinds).params.items()))] = None
    return tuple(sorted(found, key=repr))


def _check_storable(name: str, value: Any) -> None:
    """Refuse a value that a store cannot give back as it was."""
    try:
        hash(frozen(value))
        same = frozen(json.loads(json.dumps(value))) == frozen(value)
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ArgumentError(
            f"search[{name!r}] must have numbers, texts, True, False, None, or tuples of them, got {value!r:.80}: let "
            "optimizer make the object from one of these"
        )


def _has_cells(experiment: Experiment, main: Workload) -> bool:
    """Whether the comparison trains all cells that the experiment needs from it."""
    have = {(method, size) for method in main.design.methods for size in main.design.batch_sizes}
    return all((variant, size) in have for workload, variant, size in experiment.cells if workload == MAIN)


def _buildable(task: Task, plan: Design, strict: bool) -> tuple[Design, Notes]:
    """The design with the methods that can be applied to the model; if `strict`, all of them must be possible.

    Also returns notes for the report on what is left out.
    """
    rehearse(task, plan)
    able = []
    for method in plan.methods:
        try:
            task.build(method, 0)
            able.append(method)
        except ArgumentError:
            if strict or method == "none":
                raise
    if strict:
        return plan, ()
    if not set(able) & {*OF_LAYERS, *OF_WEIGHTS}:
        raise ArgumentError("some norm must fit into the model, but none does: name a method to see why")
    notes: Notes = ()
    kinds = set() if task.arms else {info.kind or "" for _, info in norms(task.build("unchanged", 0))}
    if task.arms is None and not kinds:
        # Without norms, "unchanged" and "none" are the same model.
        able.remove("unchanged")
    elif len(kinds) == 1 and kinds <= {*able}:
        able.remove("unchanged")
        name, name_zh = (inline(kind, lang) for kind in kinds for lang in ("en", "zh"))
        notes = (
            (
                Text("Methods", "方法"),
                Text(
                    f"All norms of the model are {name} already, so {name} is the model as it is, which is not trained "
                    "a second time.",
                    f"模型中的归一化已全部是{name_zh}，因此{name_zh}就是原模型，不再重复训练。",
                ),
            ),
        )
    return replace(plan, methods=tuple(able)), notes


def make_folder(folder: Path) -> Path:
    """The folder of the report; it is made if it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(
            f"out must be a folder, or a path where one can be made, got {str(folder)!r} ({error.strerror}): "
            "name another"
        ) from error
    return folder
