"""Further runs that verdicts need, with real training: other rates, more seeds, early discards, counted reports."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from normkit import Task
from normkit.study import compare
from normkit.study.comparison import Comparison
from normkit.study.execution.store import Store
from normkit.study.training.design import FIRST_PART, design
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Trial

STEPS = 40


def task(dropout: float = 0.0) -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator)
    y = x.sum(1, keepdim=True) + 0.5 * torch.randn(200, 1, generator=generator)
    return Task(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 1)),
        (x, y),
        (x, y),
        loss=nn.functional.mse_loss,
        rates=(1e-3, 0.3),
        smallest=0.1,
    )


def run(out: Path, **given: object) -> Comparison:
    usual = {"methods": ["BN"], "batch_sizes": [8], "seeds": 3, "trials": 3, "steps": STEPS, "workers": 1}
    return compare(task(), out=out, progress=False, **{**usual, **given})  # type: ignore[arg-type]


def test_reports_are_counted_and_seeds_are_added(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert [(look.seeds, look.alpha) for look in first.looks] == [(3, 0.04)]
    more = run(tmp_path, seeds=5)
    assert [(look.seeds, look.alpha) for look in more.looks] == [(3, 0.04), (5, 0.005)]
    assert more.design.confirm
    read = Comparison.load(tmp_path)
    assert (read.looks, read.pairs) == (more.looks, more.pairs)
    assert [cell.setting for cell in read.cells] == [cell.setting for cell in more.cells]
    assert "What these seeds can tell apart" in (tmp_path / "index.html").read_text("utf-8")


def test_until_resolved_doubles_seeds_until_the_pair_is_resolved(tmp_path: Path) -> None:
    found = run(tmp_path, methods=["RMS"], seeds=2, until_resolved=True, minutes=0.2)
    (pair,) = found.pairs
    last = found.looks[-1].seeds
    assert last == 2 * 2 ** (len(found.looks) - 1)
    assert found.complete
    assert all(len(cell.runs) == last for cell in found.cells)
    assert "--until-resolved" in found.command
    with Store(tmp_path / "study.sqlite3") as store:
        assert store.looks(task(), found.design) == tuple(look.seeds for look in found.looks)
    assert pair.relation != "not resolved" or found.looks[-1].seeds >= 4


def test_the_first_steps_of_a_run_are_those_of_a_short_one() -> None:
    plan = design(("none",), (8,), 2, 3, 200, 0)
    long, short = (Trial("tune", "none", 8, 0.01, 5, part=part) for part in (1.0, FIRST_PART))
    (whole,), (part,) = (Trainer().execute(task(), plan, [trial]) for trial in (long, short))
    assert part.losses == pytest.approx(whole.losses[:20], rel=1e-3)


def test_rates_are_discarded_if_copies_cannot_be_trained_at_once(tmp_path: Path) -> None:
    from normkit.study.setup import prepared

    asked = {"methods": ["BN"], "batch_sizes": [8], "seeds": 2, "trials": 4, "steps": 200, "claims": None}
    others = {"full": False, "device": "cpu", "dtype": "float32", "seed": 0}

    def discards(dropout: float, discard: bool | None) -> bool:
        (workload,), _ = prepared(task(dropout), **asked, **others, discard=discard)  # type: ignore[arg-type]
        return workload.design.discards

    assert [discards(0.0, None), discards(0.5, None)] == [False, True]
    assert [discards(0.0, True), discards(0.5, False)] == [True, False]
    assert not replace(design(("none",), (8,), 2, 4, 100, 0), discard=True).discards
