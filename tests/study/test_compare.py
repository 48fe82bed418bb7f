"""`compare` from end to end on a small design: the page, results.json, the terminal, and that they agree."""

import doctest
import importlib
import json
from pathlib import Path

import pytest

import normkit
from normkit import study
from normkit.errors import ArgumentError, StateError
from normkit.study import comparison
from normkit.study.analysis.stats import Interval
from normkit.study.report import terminal
from normkit.study.report.writing import formatting


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> comparison.Comparison:
    """One small study, in two processes as by default."""
    return normkit.compare(
        methods=["BN"],
        batch_sizes=[16, 4],
        seeds=2,
        trials=3,
        steps=60,
        workers=2,
        claims=False,
        out=tmp_path_factory.mktemp("report"),
        progress=False,
    )


@pytest.fixture(scope="module")
def results(found: comparison.Comparison) -> dict[str, object]:
    assert found.path is not None
    return json.loads((found.path.parent / "results.json").read_text(encoding="utf-8"))


def test_everything_was_run(found: comparison.Comparison) -> None:
    assert found.complete
    assert found.failures == ()
    assert [(c.method, c.batch_size) for c in found.cells] == [
        ("none", 4), ("batch_norm", 4), ("none", 16), ("batch_norm", 16),
    ]  # fmt: skip
    for cell in found.cells:
        assert len(cell.runs) == 2
        assert len(cell.tuning) >= 3 * 2
        assert cell.time_ratio is not None
    assert found.cell("none", 4).time_ratio == Interval(1.0, 1.0, 1.0, 60)


def test_the_file_holds_every_run(results: dict, found: comparison.Comparison) -> None:
    assert results == json.loads(json.dumps(found.to_dict()))
    for cell in results["cells"]:
        assert [run["job"]["seed"] for run in cell["runs"]] == [100, 101]
        assert all(len(run["losses"]) == 60 for run in cell["runs"] if run["state"] == "trained")
    assert results["design"]["rates"] == [0.003162, 0.05623, 1.0]


def test_the_terminal_says_the_same(found: comparison.Comparison) -> None:
    from rich.console import Console

    console = Console(width=100, file=open("/dev/null", "w"), record=True)  # noqa: SIM115
    with console.file:
        console.print(terminal.table(found))
    printed = console.export_text()
    for row in found.rows():
        line = next(line for line in printed.splitlines() if row[1] in line and row[2] in line)
        assert all(text in line for text in row[2:8])
        assert all(text in str(found) for text in row)
    assert found.answer in str(found)


def test_progress_is_reported_in_order(tmp_path: Path) -> None:
    reported: list[tuple[int, int, str]] = []
    normkit.compare(
        methods=["none"],
        batch_sizes=[4],
        seeds=2,
        trials=3,
        steps=40,
        workers=1,
        claims=False,
        out=tmp_path,
        progress=lambda *now: reported.append(now),
    )
    done = [count for count, *_ in reported]
    assert done == sorted(done)
    done, total, _ = reported[-1]
    # Three rates on two tuning seeds, two seeds for the result, and the timing; more if the range was extended.
    assert done == total >= 6 + 2 + 1
    assert [what for *_, what in reported[-1:]] == ["timing"]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "find_spec", lambda name: None if name in ("optuna", "jinja2") else object())
    with pytest.raises(
        StateError, match=r'missing: optuna, jinja2. Install them with: pip install "normkit\[compare\]"'
    ):
        normkit.compare()


def test_workers_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="workers must be at least 1, got 0"):
        normkit.compare(workers=0, out=tmp_path)


def test_a_batch_is_no_larger_than_the_data(tmp_path: Path) -> None:
    with pytest.raises(
        ArgumentError, match="batch sizes must be at most 600, the number of samples to train on, got 601"
    ):
        normkit.compare(batch_sizes=[2, 601], out=tmp_path)


EXAMPLES = [
    "",
    ".task.task",
    ".task.metric",
    ".training.design",
    ".training.trial",
    ".training.cost",
    ".analysis.stats",
]
EXAMPLES += [".execution.machine", ".execution.workers", ".execution.workers.local", ".claims", ".setup"]
EXAMPLES += [f".report.writing.{name}" for name in ("formatting", "texts", "claim_links", "experiments")]
EXAMPLES += [".report.figures.curves"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(f"normkit.study{name}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_words_of_bounds_and_signs() -> None:
    assert formatting.steps((400.0, True)) == "≥ 400"
    assert formatting.error(Interval(0.02, -0.01, 0.05, 3))[1] == "0.0 to 5.0"
    assert formatting.plus(-0.004) == "0.00"
