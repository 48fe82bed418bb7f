"""The benchmark of whole models times no wrong model, and its tables show what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks.models import __main__ as models
from benchmarks.models import report, subjects
from benchmarks.models.measure import error
from benchmarks.models.unet import UNet
from benchmarks.speed.measure import RESULTS
from torch import nn
from typer.testing import CliRunner

OPTIONS = ["--match", "tiny eager float32", "--seconds", "0", "--save"]


def tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, subjects.CLASSES)
    )


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(subjects.SUBJECTS, "tiny", subjects.Subject(tiny, (4, 3, 5, 5)))
    with torch.random.fork_rng():
        yield


def row(training: bool, compiled: bool, *times: float, quiet: bool = True) -> dict:
    who = ("torch", "normkit", "folded")
    facts = {
        "model": "UNet",
        "layout": "contiguous",
        "precision": "float32",
        "norms": 11,
        "share": 0.25,
        "quiet": quiet,
    }
    return {**facts, "training": training, "compiled": compiled, "milliseconds": dict(zip(who, times, strict=False))}


def test_a_model_from_the_command_line_to_the_table(tmp_path: Path):
    path = tmp_path / "part.json"
    result = CliRunner().invoke(models.app, [*OPTIONS, str(path)])
    assert result.exit_code == 0, result.output
    content = json.loads(path.read_text())
    training, inference = content["cells"]
    assert set(training["milliseconds"]) == {"torch", "normkit"}
    assert set(inference["milliseconds"]) == {"torch", "normkit", "folded"}
    for each in (training, inference):
        assert each["norms"] == 1
        assert 0 < each["share"] < 1
        assert min(each["milliseconds"].values()) > 0
        assert max(each["error"].values()) < 1e-5
    content["cells"] = [{**each, "quiet": True} for each in content["cells"]]
    path.write_text(json.dumps(content))
    assert CliRunner().invoke(models.app, [*OPTIONS, str(path), "--resume"]).exit_code == 0
    assert json.loads(path.read_text())["cells"] == content["cells"]
    assert report.summary(content, "zh").count("\n|") == report.summary(content).count("\n|") > 9


def test_a_wrong_model_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def wrong(*arguments, **_) -> torch.Tensor:
        return 1.1 * nn.functional.batch_norm(*arguments)

    monkeypatch.setattr("normkit.layers.batch.norm.functional.batch_norm", wrong)
    path = tmp_path / "part.json"
    result = CliRunner().invoke(models.app, [*OPTIONS, str(path)])
    assert result.exit_code == 1
    for each in json.loads(path.read_text())["cells"]:
        assert each["milliseconds"]["normkit"] is None
        assert "relative error" in each["failed"]["normkit"]
        assert each["milliseconds"]["torch"] > 0


def test_a_wrong_gradient_or_nan_is_an_error():
    expected = [torch.ones(3), torch.ones(5)]
    assert error(expected, expected) == 0
    assert error([torch.ones(3), 1.1 * torch.ones(5)], expected) == pytest.approx(0.1, abs=1e-6)
    assert not error([torch.ones(3), torch.full((5,), torch.nan)], expected) <= 1


def test_ratios_and_the_share_of_the_norms():
    machine = {"cpu": "a processor", "isa": "AVX2", "threads": 2, "torch": "2.13.0", "date": "2026-01-01"}
    cells = [row(True, False, 10.0, 8.0), row(True, True, 8.0, 8.0), row(False, False, 4.0, 2.0, 1.0)]
    text = report.summary({"machine": machine, "cells": [*cells, row(False, True, 1.0, 9.0, quiet=False)]})
    assert "3 of 4 cells" in text
    assert "| UNet contiguous float32 | 11 | 25% | 10 | 8 | 1.25 | 8 | 8 | 1.00 |" in text
    assert "| UNet contiguous float32 | 11 | 25% | 4 | 2 | 2.00 | 1 | 4.00 | – | – | – |" in text
    assert "| inference, compiled: lowest ratio of normkit | ≥ 0.97 | – | – |" in text


def test_the_unet_returns_an_image_of_the_same_size():
    x = torch.randn(1, 3, 16, 8)
    y = UNet(32)(x)
    assert y.shape == x.shape
    assert y.std() > 0


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_pages_show_the_results(lang: str):
    results = json.loads((RESULTS / "models.json").read_text())
    page = report.page_of(lang).read_text(encoding="utf-8")
    assert report.filled(page, results, lang) == page, "PYTHONPATH=tests python -m benchmarks.models --resume"
