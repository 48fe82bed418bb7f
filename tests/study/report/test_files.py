"""Every figure as a file: an SVG that is complete by itself, and a CSV with the values that it shows."""

from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from normkit import cli
from normkit.errors import ArgumentError
from normkit.study import report
from normkit.study.comparison import Comparison
from normkit.study.report.figures import files


@pytest.fixture(scope="module")
def drawn(found: Comparison) -> dict[str, files.Figure]:
    return {figure.name: figure for figure in files.figures(found)}


def rows(figure: files.Figure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(figure.csv)))


def test_every_figure_of_the_page_is_there(found: Comparison, drawn: dict[str, files.Figure]) -> None:
    plots = report.render(found).count('<svg class="plot"')
    assert len(drawn) == plots > 20


def test_an_svg_needs_no_page(drawn: dict[str, files.Figure]) -> None:
    for figure in drawn.values():
        root = ElementTree.fromstring(figure.svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert float(root.attrib["width"]) > 200
        # Programs other than browsers know no variables.
        assert "var(" not in figure.svg
        used = {name for names in re.findall(r'class="([\w ]+)"', figure.svg) for name in names.split()} - {
            "plot",
            "axis",
        }
        assert all(f".{name}{{" in figure.svg or f".{name}," in figure.svg for name in used), used
        assert not re.search(r":(muted|card|ink|line)\b", figure.svg)


def test_the_data_are_those_of_the_cells(found: Comparison, drawn: dict[str, files.Figure]) -> None:
    shown = rows(drawn["results-batch-2"])
    for cell in found.cells:
        if cell.batch_size == 2:
            mine = {row["seed"]: row for row in shown if row["method"] == cell.method}
            assert cell.error is not None
            assert float(mine["mean"]["value"]) == cell.error.value
            assert (float(mine["mean"]["low"]), float(mine["mean"]["high"])) == (cell.error.low, cell.error.high)
            values = [float(row["value"]) for seed, row in mine.items() if seed != "mean"]
            assert values == [run.test_error for run in cell.runs]
    rates = rows(drawn["learning-rates-batch-32"])
    assert {float(row["rate"]) for row in rates} == set(found.design.rates)
    assert sum(row["chosen"] == "True" for row in rates) == len(found.design.methods)
    times = [
        row for row in rows(drawn["step-time-batch-2"]) if row["method"] == "batch_norm" and row["round"] != "median"
    ]
    assert np.median([float(row["seconds"]) for row in times]) == np.median(found.cell("batch_norm", 2).seconds)
    first = found.evidence[0]
    (effect,) = rows(drawn[f"{first.claim}-1-effect"])
    assert float(effect["value"]) == first.effect.value
    assert effect["finding"] == first.finding


def test_they_are_written_by_the_command_and_by_python(found: Comparison, tmp_path: Path) -> None:
    report.write(found, tmp_path)
    result = CliRunner().invoke(cli.app, ["report", str(tmp_path), "--figures", str(tmp_path / "made" / "here")])
    assert result.exit_code == 0, result.output
    written = {path.name: path.read_bytes() for path in (tmp_path / "made" / "here").iterdir()}
    assert f"Figures: {len(written)} files in {tmp_path / 'made' / 'here'}" in result.output
    paths = found.figures(tmp_path / "other", "zh")
    assert {path.name for path in paths} == set(written)
    assert "测试错误率" in (tmp_path / "other" / "results-batch-2.svg").read_text("utf-8")
    assert (tmp_path / "other" / "results-batch-2.csv").read_bytes() == written["results-batch-2.csv"]
    with pytest.raises(ArgumentError, match=r"figures need a folder that can be written, got .*: name another"):
        found.figures(tmp_path / "results.json")
    with pytest.raises(ArgumentError, match="the page exists in en and zh, got 'fr'"):
        found.figures(tmp_path / "third", "fr")
    assert not (tmp_path / "third").exists()
