"""The benchmark counts bytes as documented, detects wrong numbers, and can show its results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks import extras, run, show
from benchmarks.speed import oracle, report
from benchmarks.speed.contestants import contestants
from benchmarks.speed.measure import RESULTS
from benchmarks.speed.workloads import Cell, cells
from typer.testing import CliRunner

SMALL = Cell("layer_norm", (8, 32), "contiguous", "float32", False, "L2")


@pytest.fixture(autouse=True)
def same_random_numbers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def times(torch_ms: float | None, normkit_ms: float, copy_ms: float, backward: bool, **facts) -> dict:
    milliseconds = {"torch": torch_ms, "normkit": normkit_ms, "copy": copy_ms}
    cell = {"shape": [32, 512], "units": 5 if backward else 2, "bytes": 1 << 16, "backward": backward}
    return {**cell, "method": "layer_norm", "milliseconds": milliseconds, **facts}


def test_two_cells_from_the_command_line_to_the_pictures(tmp_path: Path):
    path, documents = tmp_path / "part.json", [tmp_path / "docs" / lang / "page.md" for lang in ("en", "zh")]
    options = ["--match", "rms_norm [4, 16]", "--seconds", "0.01", "--no-compile", "--save", str(path)]
    result = CliRunner().invoke(run.app, options)
    assert result.exit_code == 0, result.output
    rows = json.loads(path.read_text())["cells"]
    assert [row["name"].split()[-1] for row in rows] == ["forward", "forward+backward"]
    assert [row["units"] for row in rows] == [2, 5]
    for row in rows:
        assert row["bytes"] == 256
        assert row["failed"] == {}
        assert set(row["milliseconds"]) == {"torch", "normkit", "copy"}
        assert min(row["milliseconds"].values()) > 0
        assert 0 < row["error"]["normkit"] < oracle.BOUND

    # Disturbed cells would be measured again; these are marked as quiet, so there is nothing to do.
    content = json.loads(path.read_text())
    content["cells"] = [{**row, "quiet": True} for row in rows]
    path.write_text(json.dumps(content))
    assert CliRunner().invoke(run.app, [*options, "--resume"]).exit_code == 0
    assert json.loads(path.read_text())["cells"] == content["cells"]

    for document in documents:
        document.parent.mkdir(parents=True)
        document.write_text(f"before\n{show.MARKER}\nold\n{show.MARKER}\nafter\n")
    result = CliRunner().invoke(show.app, [str(path), "--docs", str(documents[0])])
    assert result.exit_code == 0, result.output
    english, chinese = pages = [document.read_text(encoding="utf-8") for document in documents]
    assert "2 of 2 cells" in english
    assert "2 项中有 2 项" in chinese
    assert "| 目标 | 要求 | AVX" in chinese
    for page in pages:
        assert page.startswith("before\n")
        assert page.endswith("after\n")
        assert "old" not in page
        assert page.count("\n|") == english.count("\n|") > 9
    assert "rms_norm [4, 16] contiguous float32 forward+backward" in path.with_suffix(".md").read_text()
    for name in ("part-speedups.svg", "part-roofline.svg"):
        assert all(f"](../../{name})" in page for page in pages)
        assert (tmp_path / name).read_text().rstrip().endswith("</svg>")


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_pages_show_the_results(lang: str):
    pages = RESULTS.parents[1] / "docs" / lang / "engine"
    files = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("cpu-*.json"))]
    again = "python -m benchmarks.show benchmarks/results/cpu-*.json --docs docs/en/engine/performance.md"
    assert report.summary(files, lang) in (pages / "performance.md").read_text(encoding="utf-8"), again
    results = json.loads((RESULTS / "extras.json").read_text())
    assert extras.part(results, lang) in (pages / "extras.md").read_text(encoding="utf-8")


def test_a_page_is_found_in_both_languages():
    found = {"en": Path("docs/en/engine/gpu.md"), "zh": Path("docs/zh/engine/gpu.md")}
    assert show.translations(found["en"]) == show.translations(found["zh"]) == found
    assert show.translations(Path("page.md")) == {"en": Path("page.md")}


def test_a_part_does_not_replace_all_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    (tmp_path / "cpu.json").write_text("{}")
    result = CliRunner().invoke(run.app, ["--match", "[4, 16]", "--save", str(tmp_path / "cpu.json")])
    assert result.exit_code == 2
    assert (tmp_path / "cpu.json").read_text() == "{}"


def test_wrong_numbers_fail_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("normkit.layers.rms.functional.rms_norm", lambda x, *_, **__: x * 1.001)
    path = tmp_path / "part.json"
    options = ["--match", "rms_norm [4, 16]", "--seconds", "0", "--no-compile", "--save", str(path)]
    result = CliRunner().invoke(run.app, options)
    assert result.exit_code == 1
    assert "error is above 4 eps" in result.output
    forward, backward = json.loads(path.read_text())["cells"]
    assert forward["error"]["normkit"] > oracle.BOUND
    # The weight is not used, which backward notices: null, with the message.
    assert backward["milliseconds"]["normkit"] is None
    assert "not have been used" in backward["failed"]["normkit"]


def test_units_of_every_cell():
    every = list(cells())
    assert len({cell.name for cell in every}) == len(every)
    again = {cell for cell in every if cell.units in (3, 8)}
    assert {cell.units for cell in every} == {2, 3, 5, 8}
    assert {(cell.method, cell.layout) for cell in again} == {("batch_norm", "contiguous")}
    assert {cell.shape for cell in again} == {(32, 64, 112, 112), (16384, 2048)}
    assert all(cell.backward == (cell.units in (5, 8)) for cell in every)
    assert replace(SMALL, dtype="bfloat16").bytes == 8 * 32 * 2


def test_fraction_of_the_limit():
    assert report.fraction_of_limit(2.0, 1.0, 2) == 0.5
    assert report.fraction_of_limit(5.0, 1.6, 5) == pytest.approx(0.8)
    row = report.Row(times(4.0, 2.0, 0.8, True))
    assert row.of_limit() == pytest.approx(1.0)
    assert row.over("torch") == 2.0
    assert row.gigabytes("copy") == pytest.approx(5 * 65536 / 0.8e6)


def test_the_better_of_two_ways_counts_and_failures_do_not():
    row = times(None, 2.0, 1.0, False)
    assert report.Row(row).over("torch") is None
    row["milliseconds"]["torch, by batch_norm"] = 3.0
    assert report.Row(row).over("torch") == 1.5
    row["milliseconds"]["torch"] = 1.0
    assert report.Row(row).over("torch", "compile") == 0.5


def test_the_targets_are_read_from_the_cells():
    facts = {"quiet": True, "size": "memory", "limit": True, "error": {"torch": 1.0, "normkit": 0.5}}
    rows = [times(6.0, 2.0, 1.8, False, **facts), times(12.0, 4.0, 1.0, True, **facts)]
    disturbed = times(1.0, 9.0, 1.0, False, **facts) | {"quiet": False}
    machine = dict.fromkeys(("cpu", "isa", "threads", "torch", "date"), "x")
    text = report.summary([{"machine": machine, "cells": [*rows, disturbed]}])
    assert "2 of 3 cells" in text
    assert "| 16K elements and more, over eager: geometric mean | ≥ 2.40 | 3.00 yes |" in text
    assert "| limit, forward: median | ≥ 0.85 | 0.90 yes |" in text
    assert "| limit, forward and backward: median | ≥ 0.80 | 0.62 no |" in text
    assert "| error of y in eps (1 + abs(mean) / std): worst cell | ≤ 4.00 | 0.50 yes |" in text


@pytest.mark.parametrize(
    ("method", "shape", "layout"),
    [(cell.method, cell.shape, cell.layout) for cell in cells() if cell.size == "overhead" and not cell.backward]
    + [("weight_norm", (8, 3, 3, 3), "contiguous"), ("rms_norm", (32, 64), "contiguous")],
)
@pytest.mark.parametrize("size", ["overhead", "L2"])
def test_contestants_compute_the_same(method: str, shape: tuple[int, ...], layout: str, size: str):
    size = "weights" if method == "weight_norm" else size
    running, failed = contestants(Cell(method, shape, layout, "float32", False, size), compiled=False)
    assert failed == {}
    cell = Cell(method, shape, layout, "float32", True, size)
    assert oracle.error(cell, running["normkit"]) < oracle.BOUND
    # torch promises no bound and passes 4 on channels_last; another formula would be off by thousands.
    assert oracle.error(cell, running["torch"]) < 10 * oracle.BOUND
    exact, ours = contestants(cell, compiled=False)[0]["torch"], contestants(cell, compiled=False)[0]["normkit"]
    assert [g.shape for g in exact.train()] == [g.shape for g in ours.train()]
    broken = replace(running["normkit"], function=lambda *inputs: running["normkit"].function(*inputs) * 1.001)
    assert oracle.error(cell, broken) > oracle.BOUND
