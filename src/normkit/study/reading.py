"""From `results.json` back to the comparison it was made from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from normkit.catalog import Text
from normkit.errors import ArgumentError, StateError
from normkit.study.comparison import FORMAT, Comparison
from normkit.study.design import Design
from normkit.study.evidence import ArmValues, Evidence
from normkit.study.metric import Metric
from normkit.study.run import Run
from normkit.study.stats import Interval
from normkit.study.verdict import Cell, Pair, Standing

AGAIN = "give the command of that study again with the same --out: its finished runs are kept, and not run again"


def load(path: Path) -> Comparison:
    """The comparison in a folder, or in a file; see `Comparison.load`."""
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
    return comparison_of(data)


def comparison_of(data: Any) -> Comparison:
    """The comparison of plain data; see `Comparison.from_dict`."""
    if not isinstance(data, Mapping) or "cells" not in data:
        raise ArgumentError(
            f"a comparison is made from what its to_dict gives, got {_described(data)}: use the results.json of compare"
        )
    if data.get("format") != FORMAT:
        raise StateError(
            f"results must have format {FORMAT}, which this version of normkit writes, got "
            f"{data.get('format', 'none, of an older version')}: {AGAIN}"
        )
    try:
        return _comparison(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArgumentError(
            f"results must be whole, but a part of these is missing or is no such part "
            f"({type(error).__name__}: {error}): {AGAIN}"
        ) from error


def _comparison(data: Mapping[str, Any]) -> Comparison:
    design = _design(data["design"])
    plain = {cell["batch_size"]: tuple(cell["seconds"]) for cell in data["cells"] if cell["method"] == "none"}
    return Comparison(
        design=design,
        rules=tuple((_text(rule["heading"]), _text(rule["text"])) for rule in data["rules"]),
        task=_text(data["task"]),
        metric=Metric(_text(data["metric"]["name"]), data["metric"]["share"]),
        cells=tuple(_cell(cell, design, plain.get(cell["batch_size"], ())) for cell in data["cells"]),
        pairs=tuple(
            Pair(
                **{
                    **pair,
                    "difference": _interval(pair["difference"]),
                    "wide": _interval(pair["wide"]),
                    "p_corrected": _number(pair["p_corrected"]),
                }
            )
            for pair in data["pairs"]
        ),
        standings=tuple(
            Standing(s["batch_size"], s["leader"], *(tuple(s[name]) for name in ("behind", "equal_to", "unresolved")))
            for s in data["standings"]
        ),
        evidence=tuple(_evidence(evidence) for evidence in data["evidence"]),
        failures=tuple(Run.from_dict({**failure, "state": "failed", "losses": ()}) for failure in data["failures"]),
        complete=data["complete"],
        machine=data["machine"],
        command=data["command"],
        seconds=data["seconds"],
    )


def _design(data: Mapping[str, Any]) -> Design:
    return Design(**{field.name: _tuple(data[field.name]) for field in fields(Design)})


def _tuple(value: Any) -> Any:
    """Lists, as a file has them, are tuples in what is frozen."""
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value


def _cell(data: Mapping[str, Any], design: Design, plain: tuple[float, ...]) -> Cell:
    tuning, runs = (tuple(Run.from_dict(run) for run in data[name]) for name in ("tuning", "runs"))
    seconds = tuple(data["seconds"])
    return Cell(data["method"], data["batch_size"], design, tuning, runs, seconds, plain, data["saved_bytes"])


def _evidence(data: Mapping[str, Any]) -> Evidence:
    texts = {name: _text(data[name]) for name in ("question", "design", "measure", "rule")}
    arms = tuple(
        ArmValues(
            _text(arm["label"]),
            arm["method"],
            tuple(_number(value) for value in arm["values"]),
            arm["interval"] and _interval(arm["interval"]),
        )
        for arm in data["arms"]
    )
    curves = {
        name: tuple(tuple(_number(loss) for loss in run) for run in runs) for name, runs in data["curves"].items()
    }
    intervals = {name: _interval(data[name]) for name in ("effect", "wide")}
    return Evidence(**{**data, **texts, **intervals, "arms": arms, "curves": curves})


def _interval(data: Mapping[str, Any]) -> Interval:
    """Where there was no finite end, none was written."""
    low = -math.inf if data["low"] is None else data["low"]
    high = math.inf if data["high"] is None else data["high"]
    return Interval(_number(data["value"]), low, high, data["n"])


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _text(data: Mapping[str, str]) -> Text:
    return Text(data["en"], data["zh"])


def _described(data: Any) -> str:
    return f"keys {', '.join(map(str, list(data)[:5]))}" if isinstance(data, Mapping) else type(data).__name__
