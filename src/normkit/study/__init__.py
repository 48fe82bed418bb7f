"""The experiment of `normkit compare`: which normalization should I use?

Its folders, in the order in which data pass them; each imports only from those before it:

- `suite`: built-in data and networks.
- `task`: a model, data, loss and metric; the same model under each variant.
- `training`: the numbers of a design, and one training run of it, or many at once.
- `execution`: the order of the trials, the workers, and the store of finished runs.
- `analysis`: turns runs into statements, as data.
- `claims`: the experiments on the claims of the catalog.
- `report`: all text, the page, results.json and the formats of other programs.

After them `setup` turns arguments into workloads and experiments, `outline` estimates how long they take, `run_study`
runs them, and `comparison` is the result.
"""

from __future__ import annotations

import inspect
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normkit.errors import ArgumentError, StateError, nearest

if TYPE_CHECKING:
    from normkit.study.comparison import Comparison
    from normkit.study.execution.scheduler import Progress
    from normkit.study.outline import Outline
    from normkit.study.task import Task
    from normkit.study.training.design import Design

__all__ = ["check", "compare", "named_task", "plan"]


# Over 80 lines, because all options are in its signature and are passed on by name.
def compare(
    task: Task | None = None,
    *,
    methods: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (2, 32),
    seeds: int = 10,
    trials: int | None = None,
    steps: int | None = None,
    claims: Sequence[str] | bool | None = None,
    full: bool = False,
    minutes: float | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    workers: int | None = None,
    out: str | Path = "report",
    seed: int = 0,
    progress: bool | Progress = True,
    store: str | None = None,
    resume: bool = False,
    executor: str = "processes",
    address: str | None = None,
    time_limit: float | None = None,
    lang: str = "en",
    checkpoints: bool = False,
    until_resolved: bool = False,
    discard: bool | None = None,
) -> Comparison:
    """Train a model under every normalization with an equal tuning budget, and write the report.

    Without a task it trains a small network on built-in data. Without methods as well, it also measures every claim of
    the catalog in separate experiments. Design, statistics and rules are fixed before a run, and explained in the
    report.

    Args:
        task: your model and data, a `normkit.Task`; None for the built-in suite.
        methods: names or aliases from the catalog ("batch_norm", "BN"), "unchanged" for the model as it is, and
            "none" for no normalization, which is always trained too because steps and times are given relative to it.
        batch_sizes: samples per training step, at most the number of training samples; everything is measured at
            each of them.
        seeds: evaluation runs of every method at every batch size.
        trials: learning rates tried for every method at every batch size, on separate seeds; by default those of the
            task: 7 of your own, unless it says another number, and 6 of the built-in digits.
        steps: training steps of one run; by default those of the task.
        claims: ids of the claims to measure in addition to the comparison, such as ["BN-4"], True for all of them,
            False for none; by default all of them, but none if methods or a task are given. A claim is measured with
            the methods that it compares, and those alone. Not with a task, because claims have tasks of their own.
        full: more seeds for each claim, for narrower intervals.
        minutes: start no further run after this time; the same call continues from there.
        device: where to train, as torch names it.
        dtype: "float32" or "float64" for weights and arithmetic, or "bfloat16" for autocast to it.
        workers: number of runs at the same time, each with one process and one torch thread; None is one per core: of
            this machine, at most 8, or of the Ray cluster.
        out: folder for `index.html`, `results.json` and the store `study.sqlite3`. An existing store is continued: no
            finished run is run again.
        seed: the number from which all random numbers are derived.
        progress: True shows bars, or a line every ten seconds where the output is no terminal; False nothing. A
            function is called with (runs finished, runs in all, the name of the stage).
        store: URL of a database for the finished runs, such as "postgresql+psycopg://user@host/name", instead of
            the file in `out`. Several calls may share it, also from several machines: each runs the trials that the
            others have not taken.
        resume: raise an error if the study was not begun before; an existing study is continued in any case.
        executor: "processes" on this machine, or "ray" for a cluster (`pip install "normkit[ray]"`).
        address: address of the Ray cluster, such as "auto" or "ray://host:10001"; None starts one on this machine.
        time_limit: seconds a run may take; then it is stopped and counts as failed. Runs that are trained at once and
            take longer are divided and tried again. Not with workers=1, because the runs are then made in the calling
            process.
        lang: language of the page, "en" or "zh".
        checkpoints: keep the best run of each method and batch size in the folder `checkpoints` of `out`: the one with
            the best metric on the validation data, trained again from its seed. `torch.load` gives a dictionary with
            its `state_dict`, for a model of `task.build(method, 0)`.
        until_resolved: double the seeds of the leader, and of the methods that cannot be told apart from it, until
            every method is behind the leader or equal to it, or the `minutes` are over. The probability of a wrong
            verdict is that of a single report.
        discard: whether each learning rate is trained for a tenth of the steps at first, and only those next to the
            best one to the end; by default if copies of the model cannot be trained all at once, because otherwise
            it saves steps, but no time.

    Returns:
        The `Comparison`: data with `to_dict()`, a table as `str`, `answer`, and `path` of the page, which is None
        on ranks other than 0. After an interrupt (Ctrl-C) it is made from the finished runs, and `complete` is
        False.

    Raises:
        ArgumentError: an unknown method or claim, a number that leaves nothing to measure, a model in which no norm
            can be placed, or a folder that cannot be made.
        StateError: a package of the extra is missing (`pip install "normkit[compare]"`), the store cannot be
            used, there is nothing to resume, or no process can be started.

    Example:
        >>> import normkit, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> found = normkit.compare(methods=["BN"], batch_sizes=[8], seeds=2, trials=3, steps=40, workers=1,
        ...                         claims=False, out=folder, progress=False)
        >>> found.path.name, found.complete, sorted(cell.method for cell in found.cells)
        ('index.html', True, ['batch_norm', 'none'])
    """
    _require_extra()
    _require_guard()
    from normkit.study import report
    from normkit.study.execution import machine
    from normkit.study.execution.location import Location
    from normkit.study.execution.payload import Payload
    from normkit.study.execution.store import Store
    from normkit.study.execution.workers import make_executor, ranks
    from normkit.study.report.progress import shown
    from normkit.study.run_study import run_study
    from normkit.study.setup import make_folder, prepared

    asked: dict[str, Any] = {
        "methods": methods,
        "batch_sizes": batch_sizes,
        "seeds": seeds,
        "trials": trials,
        "steps": steps,
        "claims": claims,
        "full": full,
        "device": device,
        "dtype": dtype,
        "seed": seed,
        "discard": discard,
    }
    check(
        task,
        **asked,
        minutes=minutes,
        workers=workers,
        executor=executor,
        address=address,
        time_limit=time_limit,
        lang=lang,
    )
    workloads, experiments = prepared(task, **asked)
    where = Location.of(store or Path(out) / "study.sqlite3")
    ranks.check(executor, where.file is not None)
    processes = workers or (machine.cores() if ranks.world() == 1 else ranks.local_world())
    pool = make_executor(Payload.of(workloads, processes), workers, executor=executor, address=address)
    folder = make_folder(Path(out))
    first = ranks.rank() == 0
    with shown(progress if first else False) as (notify, announce), Store(where, resume=resume) as kept:
        comparison = run_study(
            workloads,
            experiments,
            kept,
            pool,
            progress=notify,
            minutes=minutes,
            limit=time_limit,
            checkpoints=folder / "checkpoints" if checkpoints else None,
            command=_command(workloads[0].design, task, claims, methods is not None, full, until_resolved, discard),
            until_resolved=until_resolved,
            report=(lambda found: report.write(found, folder, lang)) if first else None,
            announce=announce,
        )
    return replace(comparison, path=report.write(comparison, folder, lang)) if first else comparison


DEFAULTS: Mapping[str, Any] = {name: p.default for name, p in inspect.signature(compare).parameters.items()}
"""The defaults of `compare`, from its signature."""


def plan(
    task: Task | None = None,
    *,
    workers: int | None = None,
    out: str | Path = "report",
    store: str | None = None,
    **asked: Any,
) -> Outline:
    """The plan of `compare` with the same arguments, and an estimate of its time, for which a few steps are trained.

    Returns:
        The `Outline`: rows as data, a table as `str`, `seconds`.

    Raises:
        ArgumentError, StateError: as `compare`.
    """
    _require_extra()
    from normkit.study.execution import machine
    from normkit.study.execution.location import Location
    from normkit.study.execution.store import Store
    from normkit.study.outline import outline
    from normkit.study.setup import prepared

    check(task, workers=workers, **asked)
    names = [name for name in inspect.signature(prepared).parameters if name != "task"]
    workloads, _ = prepared(task, **{name: DEFAULTS[name] for name in names} | asked)
    where = Location.of(store or Path(out) / "study.sqlite3")
    if where.file is None or where.file.exists():
        with Store(where) as kept:
            for workload in workloads:
                workload.runs |= kept.runs(workload.task, workload.design)
    return outline(workloads, workers or min(machine.cores(), 8))


def check(task: Task | str | None, **asked: Any) -> None:
    """Raise one error that names every mistake in arguments of `compare`, before a task is imported or a model is made.

    Args:
        task: the task, or its name on the command line.
        asked: arguments of `compare`; the defaults stand for the others.

    Raises:
        ArgumentError: at least one argument is not allowed.
        StateError: a package of the extra is missing.
    """
    _require_extra()
    from normkit.study import arguments
    from normkit.study.task import embedded

    # Some built-in tasks have claims of their own.
    own = isinstance(task, str) and task.partition(":")[0] in embedded.TASKS
    given = task is not None and not own and not getattr(task, "claims", ())
    arguments.check(given=given, **{name: asked.get(name, DEFAULTS[name]) for name in arguments.NAMES})


def named_task(target: str) -> Task:
    """The task that the command line names: a built-in one, or ``pkg.module:task``, a `Task` or a function for one.

    Arguments of a built-in task may follow a colon: ``sequences:depth=4,width=64,optimizer=sgd``.
    """
    _require_extra()
    from normkit.study.task import Task, embedded
    from normkit.tools.load import named

    found = embedded.named(target)
    if found is None and ":" not in target:
        raise ArgumentError(
            f"a task is built in, or named as pkg.module:name, got {target!r}: {nearest(target, tuple(embedded.TASKS))}"
        )
    found = found or named(target)
    made = found if isinstance(found, Task) or not callable(found) else found()
    if not isinstance(made, Task):
        raise ArgumentError(
            f"{target} must be a normkit.Task or a function that makes one, got {type(made).__name__}: see normkit.Task"
        )
    return replace(made, origin=target)


def _require_extra() -> None:
    needed = ("numpy", "scipy", "sklearn", "skimage", "optuna", "pebble", "jinja2", "rich", "cloudpickle")
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise StateError(
            f"compare needs packages that the core of normkit does not; missing: {', '.join(missing)}. "
            'Install them with: pip install "normkit[compare]"'
        )


def _require_guard() -> None:
    """Refuse a call by a worker process that is still importing the user's script, before it does any work."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise StateError(
            "a worker process cannot start a study, and this one calls compare while it imports the script. A script "
            "that calls compare must do so under `if __name__ == '__main__':`"
        )


def _name(task: Task) -> str:
    """The name of a task on the command line; of one that is no global name of a module a placeholder."""
    if task.origin != type(task).origin:
        return task.origin
    for name, module in list(sys.modules.items()):
        found = next((key for key, value in list(vars(module).items()) if value is task), None)
        file = getattr(module, "__file__", None)
        if found and file:
            # The main script is imported by its file name.
            return f"{Path(file).stem if name == '__main__' else name}:{found}"
    return task.origin


def _command(
    design: Design,
    task: Task | None,
    claims: Sequence[str] | bool | None,
    some: bool,
    full: bool,
    until_resolved: bool = False,
    discard: bool | None = None,
) -> str:
    """The command line that repeats the study; `some` says whether methods were named."""
    sizes = ",".join(map(str, design.batch_sizes))
    asked = (not some) if claims is None else claims
    named = f" --claims {','.join(asked)}" if isinstance(asked, Sequence) else " --claims all" if asked else ""
    unusual = [(name, getattr(design, name)) for name in ("device", "dtype") if getattr(design, name) != DEFAULTS[name]]
    return (
        f"normkit compare {'' if task is None else f'{_name(task)} '}--methods {','.join(design.methods)} "
        f"--batch-sizes {sizes} --seeds {design.seeds} --trials {design.trials} "
        # Steps would replace the epochs of a task.
        f"{'' if design.steps_by_size else f'--steps {design.steps} '}"
        f"--seed {design.seed}{'' if task and not task.claims else named}{' --full' if full else ''}"
        f"{' --until-resolved' if until_resolved else ''}"
        f"{'' if discard is None else ' --discard' if discard else ' --no-discard'}"
        f"{''.join(f' --{name} {value}' for name, value in unusual)}"
    )
