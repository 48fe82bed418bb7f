"""`results.json`: writes and reads results as plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from normkit.catalog import LANGUAGES, Text
from normkit.errors import ArgumentError, StateError
from normkit.study.analysis.cells import Cell
from normkit.study.analysis.evidence import Evidence, VariantValues
from normkit.study.analysis.results import Results
from normkit.study.analysis.stats import Interval
from normkit.study.analysis.verdict import AtRate, Look, Pair, Standing
from normkit.study.report.writing.answer import answer
from normkit.study.task.metric import Metric
from normkit.study.training.design import Design
from normkit.study.training.trial import Options, Run, frozen

R = TypeVar("R", bound=Results)

FORMAT = 3
"""The format of `results.json`; a file with another format is not read."""
AGAIN = "give the command of that study again with the same --out: its finished runs are kept, and not run again"


def to_dict(found: Results) -> dict[str, Any]:
    """Everything as plain data; a number that is not finite becomes None."""
    data = {
        "format": FORMAT,
        "answer": str(answer(found)),
        "safe": found.safe,
        "complete": found.complete,
        "task": found.task,
        "metric": asdict(found.metric),
        "design": found.design.to_dict(),
        "rules": [{"heading": heading, "text": text} for heading, text in found.rules],
        "cells": [_cell_dict(cell) for cell in found.cells],
        "pairs": [asdict(pair) for pair in found.pairs],
        "looks": [asdict(look) for look in found.looks],
        "standings": [asdict(s) | {"front": s.front} for s in found.standings],
        "evidence": [_evidence_dict(evidence) for evidence in found.evidence],
        "not_measured": [claim for claim, _ in found.not_measured],
        "failures": [{"job": asdict(run.trial), "message": run.message, "trace": run.trace} for run in found.failures],
        "machine": dict(found.machine),
        "command": found.command,
        "seconds": round(found.seconds, 1),
        "trained": found.trained,
        "awaited": found.awaited,
        "preliminary": found.preliminary,
    }
    plain: dict[str, Any] = _plain(data)
    return plain


def load(path: Path, kind: type[R]) -> R:
    """The results in a folder, or in a file.

    Args:
        path: the folder or the file.
        kind: the class to make.

    Raises:
        ArgumentError: there is no such file, or `compare` has not written it.
        StateError: a version with another format has written it.
    """
    file = path / "results.json" if path.is_dir() or not path.suffix else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError(
            f"a report is read from the results.json that compare has written, but {file} cannot be read "
            f"({error.strerror}): give the folder that was its --out"
        ) from error
    except ValueError as error:
        raise ArgumentError(
            f"a report is read from the results.json that compare has written, but {file} is not JSON ({error}): "
            f"{AGAIN}"
        ) from error
    return from_dict(data, kind)


def from_dict(data: Any, kind: type[R]) -> R:
    """Make results from the data of `to_dict`; errors as in `load`."""
    if not isinstance(data, Mapping) or "cells" not in data:
        raise ArgumentError(
            f"a comparison is made from the data of to_dict, got {_described(data)}: use the results.json of compare"
        )
    if data.get("format") != FORMAT:
        raise StateError(
            f"results must have format {FORMAT}, which this version of normkit writes, got "
            f"{data.get('format', 'none, of an older version')}: {AGAIN}"
        )
    try:
        return kind(**_fields(data))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArgumentError(
            f"results must be complete, but a part of these is missing or is not valid "
            f"({type(error).__name__}: {error}): {AGAIN}"
        ) from error


# Writing


def _cell_dict(cell: Cell) -> dict[str, Any]:
    return {
        "method": cell.method,
        "batch_size": cell.batch_size,
        "rate": cell.rate,
        "options": cell.options,
        "rivals": [rate for rate, _ in cell.rivals],
        "rate_on_edge": cell.rate_on_edge,
        "sensitivity": asdict(cell.sensitivity) if cell.sensitivity else None,
        "good_rates": cell.good_rates,
        "rate_curve": [point._asdict() for point in cell.rate_curve],
        "error": _interval_dict(cell.error),
        "train_error": _interval_dict(cell.train_error),
        "recalibrated_error": _interval_dict(cell.recalibrated_error),
        "gap": _interval_dict(cell.gap),
        "target_loss": cell.target,
        "median_steps": cell.median_steps,
        "steps": cell.steps,
        "time_ratio": _interval_dict(cell.time_ratio),
        "seconds": cell.seconds,
        "saved_bytes": cell.saved_bytes,
        "untrained": cell.untrained,
        "tuning": [replace(run, losses=()).to_dict() for run in cell.tuning],
        "short": [replace(run, losses=()).to_dict() for run in cell.short],
        "runs": [run.to_dict() for run in cell.runs],
        "others": [replace(run, losses=()).to_dict() for run in cell.others],
    }


def _evidence_dict(evidence: Evidence) -> dict[str, Any]:
    """In the file, the key of the variants is "arms"."""
    data = asdict(evidence)
    return {"arms" if name == "variants" else name: value for name, value in data.items()}


def _interval_dict(interval: Interval | None) -> dict[str, Any] | None:
    return asdict(interval) if interval else None


def _plain(value: Any) -> Any:
    if isinstance(value, Text):
        return {lang: value.to(lang) for lang in LANGUAGES}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Reading


def _fields(data: Mapping[str, Any]) -> dict[str, Any]:
    design = Design(**{field.name: _tuple(data["design"][field.name]) for field in fields(Design)})
    plain = {cell["batch_size"]: tuple(cell["seconds"]) for cell in data["cells"] if cell["method"] == "none"}
    return {
        "design": design,
        "rules": tuple((_text(rule["heading"]), _text(rule["text"])) for rule in data["rules"]),
        "task": _text(data["task"]),
        "metric": _metric(data["metric"]),
        "cells": tuple(_cell(cell, design, plain.get(cell["batch_size"], ())) for cell in data["cells"]),
        "pairs": tuple(_pair(pair) for pair in data["pairs"]),
        "looks": tuple(Look(**look) for look in data["looks"]),
        "standings": tuple(
            Standing(s["batch_size"], s["leader"], *(tuple(s[name]) for name in ("behind", "equal_to", "unresolved")))
            for s in data["standings"]
        ),
        "evidence": tuple(_evidence(evidence) for evidence in data["evidence"]),
        "failures": tuple(Run.from_dict({**failure, "state": "failed", "losses": ()}) for failure in data["failures"]),
        "complete": data["complete"],
        "machine": data["machine"],
        "command": data["command"],
        "seconds": data["seconds"],
        "trained": data.get("trained", 0),
        "awaited": data.get("awaited", 0),
        "preliminary": data.get("preliminary", False),
    }


def _metric(data: Mapping[str, Any]) -> Metric:
    return Metric(**{**data, "name": _text(data["name"])})


def _tuple(value: Any) -> Any:
    """Lists in the file are tuples in frozen data."""
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value


def _cell(data: Mapping[str, Any], design: Design, plain: tuple[float, ...]) -> Cell:
    tuning, short, runs, others = (
        tuple(Run.from_dict(run) for run in data[name]) for name in ("tuning", "short", "runs", "others")
    )
    options: Options = tuple((name, frozen(value)) for name, value in data["options"])
    return Cell(
        data["method"],
        data["batch_size"],
        design,
        tuning,
        runs,
        tuple(data["seconds"]),
        plain,
        data["saved_bytes"],
        setting=None if data["rate"] is None else (data["rate"], options),
        rivals=tuple((rate, options) for rate in data["rivals"]),
        others=others,
        short=short,
        halfway=data.get("target_loss") if design.target_loss is None else None,
    )


def _pair(data: Mapping[str, Any]) -> Pair:
    intervals = {name: _interval(data[name]) for name in ("difference", "wide")}
    at_rates = tuple(AtRate(**{**each, "difference": _interval(each["difference"])}) for each in data["at_rates"])
    return Pair(**{**data, **intervals, "p_corrected": _number(data["p_corrected"]), "at_rates": at_rates})


def _evidence(data: Mapping[str, Any]) -> Evidence:
    texts = {name: _text(data[name]) for name in ("question", "design", "measure", "rule")}
    variants = tuple(
        VariantValues(
            _text(variant["label"]),
            variant["method"],
            tuple(_number(value) for value in variant["values"]),
            variant["interval"] and _interval(variant["interval"]),
        )
        for variant in data["arms"]
    )
    curves = {
        name: tuple(tuple(_number(loss) for loss in run) for run in runs) for name, runs in data["curves"].items()
    }
    intervals = {name: _interval(data[name]) for name in ("effect", "wide")}
    others = {name: value for name, value in data.items() if name != "arms"}
    return Evidence(**{**others, **texts, **intervals, "variants": variants, "curves": curves})


def _interval(data: Mapping[str, Any]) -> Interval:
    """An interval; an end that is not finite was written as None."""
    low = -math.inf if data["low"] is None else data["low"]
    high = math.inf if data["high"] is None else data["high"]
    return Interval(_number(data["value"]), low, high, data["n"])


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _text(data: Mapping[str, str]) -> Text:
    return Text(data["en"], data["zh"])


def _described(data: Any) -> str:
    return f"keys {', '.join(map(str, list(data)[:5]))}" if isinstance(data, Mapping) else type(data).__name__
