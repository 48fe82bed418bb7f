"""Other forms of the results: data frames, Parquet, TensorBoard."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest

from normkit.errors import ArgumentError, StateError
from normkit.study.comparison import Comparison
from normkit.study.report import export


def test_data_frames(found: Comparison) -> None:
    pytest.importorskip("pandas")
    cells = found.to_pandas()
    assert len(cells) == len(found.cells)
    row = cells[(cells.method == "batch_norm") & (cells.batch_size == 32)].iloc[0]
    assert row.error == found.cell("batch_norm", 32).error.value  # type: ignore[union-attr]
    runs = found.to_pandas(level="runs")
    assert len(runs) == sum(len(c.tuning) + len(c.runs) for c in found.cells)
    again_ = runs[(runs.kind == "measure") & (runs.method == "batch_norm") & (runs.batch_size == 32)].test_error.mean()
    assert again_ == pytest.approx(row.error)
    assert list(found.to_pandas("evidence").finding) == [e.finding for e in found.evidence]
    assert len(found.to_pandas("pairs")) == len(found.pairs)
    with pytest.raises(
        ArgumentError, match="level must be one of cells, runs, pairs, evidence, got 'run': did you mean"
    ):
        found.to_pandas("run")


def test_parquet_comes_back(found: Comparison, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    paths = export.parquet(found, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells.parquet", "runs.parquet"]
    runs, expected = pandas.read_parquet(paths[0]), found.to_pandas("runs")
    assert list(runs.columns) == list(expected.columns)
    runs["losses"] = runs["losses"].map(list)
    pandas.testing.assert_frame_equal(runs, expected, check_dtype=False)


def test_tensorboard_holds_the_curves(found: Comparison, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    one = replace(found, cells=(found.cell("batch_norm", 2),))
    for _ in range(2):
        logs = export.tensorboard(one, tmp_path)
    run = one.cells[0].runs[0]
    events = accumulator.EventAccumulator(str(logs / "batch-2" / "batch_norm" / f"seed-{run.trial.seed}"))
    events.Reload()
    values = [e.value for e in events.Scalars("training loss")]
    # Stored in single precision; written twice, each is there once.
    assert values == pytest.approx(run.losses, rel=1e-6)
    assert events.Scalars("result/test_error")[0].value == pytest.approx(run.test_error, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "call"),
    [("pandas", lambda c, _: c.to_pandas()), ("pyarrow", export.parquet), ("tensorboard", export.tensorboard)],
)
def test_a_missing_package_is_named(
    found: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name, call
) -> None:
    def missing(package: str) -> object:
        if package == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return importlib.import_module(package)

    monkeypatch.setattr(export, "import_module", missing)
    with pytest.raises(StateError, match=rf'not installed \({name}\): pip install "normkit\[export\]"'):
        call(found, tmp_path)
    assert list(tmp_path.iterdir()) == []
