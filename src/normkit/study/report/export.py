"""Results in the formats of other programs: data frames, Parquet, TensorBoard. Each needs a separate package."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from normkit.errors import ArgumentError, StateError, nearest
from normkit.study.analysis.results import Results
from normkit.study.report.writing import formatting
from normkit.study.training.trial import Run

LEVELS = ("cells", "runs", "pairs", "evidence")


def frame(found: Results, level: str = "cells") -> Any:
    """A data frame; see `Comparison.to_pandas`."""
    if level not in LEVELS:
        raise ArgumentError(f"level must be one of {', '.join(LEVELS)}, got {level!r}: {nearest(level, LEVELS)}")
    pandas = _needed("pandas", "a data frame")
    return pandas.DataFrame(list(globals()[f"_{level}"](found)))


def parquet(found: Results, folder: Path) -> list[Path]:
    """Write runs.parquet, one row for each run with its losses, and cells.parquet.

    Raises:
        StateError: pandas or pyarrow is not installed.
    """
    _needed("pyarrow", "Parquet")
    written = []
    for level in ("runs", "cells"):
        path = folder / f"{level}.parquet"
        part = path.with_name(path.name + ".part")
        frame(found, level).to_parquet(part, engine="pyarrow", index=False)
        written.append(part.replace(path))
    return written


def tensorboard(found: Results, folder: Path) -> Path:
    """Write the learning curve, the hyperparameters and the result of every run of the results.

    Returns:
        The folder for ``tensorboard --logdir``.

    Raises:
        StateError: tensorboard is not installed.
    """
    _needed("tensorboard", "TensorBoard")
    from torch.utils.tensorboard import SummaryWriter

    logs = folder / "tensorboard"
    for cell in found.cells:
        for run in cell.runs:
            trial = run.trial
            place = logs / f"batch-{trial.batch_size}" / trial.method / f"seed-{trial.seed}"
            if place.exists():
                # Otherwise TensorBoard would show the old curves next to the new ones.
                for old in place.glob("events.out.tfevents.*"):
                    old.unlink()
            with SummaryWriter(str(place)) as writer:
                for step, loss in enumerate(run.losses, start=1):
                    writer.add_scalar("training loss", loss, step)
                writer.add_hparams(
                    {
                        "method": trial.method,
                        "batch_size": trial.batch_size,
                        "rate": trial.rate,
                        "seed": trial.seed,
                        "options": formatting.options(trial.options),
                    },
                    {f"result/{name}": value for name, value in _results(run).items() if value is not None},
                    run_name=".",
                )
    return logs


def _results(run: Run) -> dict[str, float | None]:
    return {
        "test_error": run.test_error,
        "train_error": run.train_error,
        "validation_error": run.validation_error,
        "gap": run.gap,
    }


def _cells(found: Results) -> Iterator[dict[str, Any]]:
    for cell in found.cells:
        row: dict[str, Any] = {
            "method": cell.method,
            "batch_size": cell.batch_size,
            "standing": found.place(cell),
            "rate": cell.rate,
            "options": formatting.options(cell.options),
        }
        for name in ("error", "train_error", "recalibrated_error", "gap", "time_ratio"):
            interval = getattr(cell, name)
            for end, key in (("value", name), ("low", f"{name}_low"), ("high", f"{name}_high")):
                row[key] = math.nan if interval is None else getattr(interval, end)
        median, bound = cell.median_steps or (math.nan, False)
        row |= {"steps": median, "steps_is_bound": bound, "saved_bytes": cell.saved_bytes}
        yield row | {"seeds": len(cell.runs), "untrained": cell.untrained}


def _runs(found: Results) -> Iterator[dict[str, Any]]:
    for cell in found.cells:
        for run in (*cell.tuning, *cell.runs):
            trial = run.trial
            yield {
                "kind": trial.kind,
                "method": trial.method,
                "batch_size": trial.batch_size,
                "rate": trial.rate,
                "options": formatting.options(trial.options),
                "seed": trial.seed,
                "state": run.state,
                "message": run.message,
                **_results(run),
                "validation_loss": run.validation_loss,
                "recalibrated_error": run.recalibrated_error,
                "seconds": run.seconds,
                "losses": list(run.losses),
            }


def _pairs(found: Results) -> Iterator[dict[str, Any]]:
    for pair in found.pairs:
        yield {
            "batch_size": pair.batch_size,
            "first": pair.first,
            "second": pair.second,
            "difference": pair.difference.value,
            "low": pair.difference.low,
            "high": pair.difference.high,
            "wide_low": pair.wide.low,
            "wide_high": pair.wide.high,
            "p_corrected": pair.p_corrected,
            "relation": pair.relation,
        }


def _evidence(found: Results) -> Iterator[dict[str, Any]]:
    for e in found.evidence:
        yield {
            "claim": e.claim,
            "name": e.name,
            "question": str(e.question),
            "unit": e.unit,
            "smallest": e.smallest,
            "effect": e.effect.value,
            "low": e.effect.low,
            "high": e.effect.high,
            "wide_low": e.wide.low,
            "wide_high": e.wide.high,
            "n": e.effect.n,
            "bound": e.bound,
            "p_corrected": e.p_corrected,
            "finding": e.finding,
        }


def _needed(package: str, what: str) -> Any:
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise StateError(
            f'{what} needs a package that is not installed ({error.name}): pip install "normkit[export]"'
        ) from error
