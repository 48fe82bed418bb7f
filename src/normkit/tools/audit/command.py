"""The command `normkit audit`: from its options to its output."""

from __future__ import annotations

import json

from normkit.errors import ArgumentError
from normkit.tools.audit.options import Options, baseline
from normkit.tools.audit.run import examine
from normkit.tools.audit.source import location_of
from normkit.tools.load import call, example_of, load, named


def run(asked: Options) -> tuple[str, int]:
    """The text to print and the exit code.

    Raises:
        ArgumentError: a baseline that is none, batches that are none, and everything `load` and `audit` raise.
    """
    model, example = load(asked.target)
    if asked.shape is not None:
        example = example_of(asked.shape, asked.tokens)
    report = examine(
        model,
        example,
        None if asked.loader is None else _batches(asked.loader),
        None if asked.optimizer is None else call(asked.optimizer, model),
        asked.ignore,
        noise=asked.shape is not None,
        location=location_of(named(asked.target)),
        batch_size=asked.batch_size,
        world_size=asked.world_size,
        accumulate=asked.accumulate,
        per_sample=asked.per_sample,
        invariance=asked.invariance,
    )
    if asked.baseline is not None:
        report = report.without(baseline(asked.baseline))
    code = report.exit_code(asked.fail_on)
    if asked.format == "sarif":
        return json.dumps(report.to_sarif(), indent=2, allow_nan=False), code
    return report.to_json() if asked.format == "json" else report.text(asked.lang), code


def _batches(target: str) -> object:
    found = call(target)
    if not hasattr(found, "__iter__"):
        raise ArgumentError(
            f"--loader must name batches or a function that returns them, got {type(found).__name__} from {target}: "
            "return a DataLoader or a list"
        )
    return found
