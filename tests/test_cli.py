"""Every command prints the result of its module, and shows errors as text."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len
from typer.main import get_command
from typer.testing import CliRunner

import normkit
from normkit import cli, draw, study
from normkit.catalog import METHODS, show


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "220")


def run(*arguments: str, code: int = 0) -> str:
    """What a command prints, errors included."""
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == code, result.output
    return result.output


def test_without_arguments_it_fits_a_screen():
    printed = run()
    assert printed == cli.START
    assert len(printed.splitlines()) <= 24
    assert max(map(len, printed.splitlines())) <= 80
    assert "\x1b[" in CliRunner().invoke(cli.app, [], color=True).output


def test_python_that_is_shown_first_runs_when_pasted():
    shown = cli.START.split("In Python:\n")[1].split("In a shell:")[0]
    names: dict[str, Any] = {}
    exec(shown, names)
    assert names["norm"](names["torch"].randn(2, 8, 5, 5)).shape == (2, 8, 5, 5)
    assert [type(layer).__name__ for layer in names["model"]] == ["Conv2d", "GroupNorm"]
    assert len(names["changes"].changes) == 1


def test_commands_that_are_shown_first_run_when_pasted(asked: dict[str, object]):
    shown = cli.START.split("In a shell:\n")[1].splitlines()
    commands = [shlex.split(line) for line in shown if line.startswith("normkit ")]
    assert [command[1] for command in commands] == ["compare", "explain"]
    for command in commands:
        assert run(*command[1:])
    assert (asked["methods"], asked["steps"]) == (["BN", "GN"], 50)
    named = re.findall(r"normkit[ .](\w+|--help)", shown[-1])
    assert named == ["--help", "compare", "convert"]
    assert "What is trained" in run("compare", "--help")
    assert callable(normkit.convert)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_explain_prints_the_card(lang: str):
    printed = run("explain", "GroupNorm", "--lang", lang)
    for label, lines in show.card(METHODS[3], lang):
        assert label in printed
        assert all(re.sub(r"  +", " ", line) in printed for line in lines)
    assert "b (g [c]) [...]" in printed


def test_explain_takes_every_name_of_a_method():
    card = run("explain", "GN")
    for names in (["gn"], ["group", "norm"], ["Group", "Normalization"], ["GroupNorm"], ["组归一化"]):
        assert run("explain", *names) == card
    assert run("explain", "layer norm") != card


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("command", [("explain", "BN"), ("methods",)])
def test_a_pipe_gets_neither_colour_nor_spaces_at_the_end(
    monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], lang: str
):
    monkeypatch.setenv("COLUMNS", "80")
    printed = run(*command, "--lang", lang)
    assert "\x1b" not in printed
    lines = printed.splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert [line for line in lines if line != line.rstrip()] == []


def test_lines_of_a_list_stay_to_the_right_of_its_marks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert (
        "Claimed weaknesses  - sensitive to kernel size and to the number of channels and\n"
        "                      groups\n"
        "Claims to measure   GN-1 group norm still works well at small batches\n"
    ) in run("explain", "GN")
    monkeypatch.setenv("COLUMNS", "55")
    assert "- sensitive to kernel size and to\n                      the number of channels and groups\n" in run(
        "explain", "GN"
    )


def test_methods_prints_every_cell_of_the_table():
    printed = run("methods")
    for row in show.table()[1]:
        for cell in row[:2]:
            assert all(line in printed for line in cell.splitlines())
    assert "收敛更快" in run("methods", "--lang", "zh")


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("columns", [60, 80, 110, 140])
def test_methods_cuts_no_word(monkeypatch: pytest.MonkeyPatch, columns: int, lang: str):
    monkeypatch.setenv("COLUMNS", str(columns))
    printed = run("methods", "--lang", lang)
    assert max(map(cell_len, printed.splitlines())) <= columns
    words = {word for row in show.table(lang)[1] for cell in row for word in re.findall(r"[a-zA-Z]{4,}", cell)}
    assert not {word for word in words if word not in printed}


@pytest.mark.parametrize("command", ["explain", "methods", "draw", "audit", "backends", "compare"])
def test_help_shows_brackets_and_every_option(command: str):
    printed = run(command, "--help")
    (wanted,) = (found for found in get_command(cli.app).commands.values() if found.name == command)
    assert all(option in printed for parameter in wanted.params for option in parameter.opts)
    assert ("b (g [c]) [...]" in printed) == (command == "draw")


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_methods_in_other_forms(lang: str):
    assert json.loads(run("methods", "--json", "--lang", lang)) == show.data(lang)
    assert run("methods", "--markdown", "--lang", lang) == show.markdown(lang)
    assert "two forms of the same table: give one" in run("methods", "--markdown", "--json", code=2)


def test_draw_writes_a_file_or_prints(tmp_path: Path):
    out = tmp_path / "new" / "region.svg"
    assert f"wrote {out}" in run("draw", "b (g [c]) [...]", "-o", str(out))
    assert out.read_text(encoding="utf-8") == draw.svg("b (g [c]) [...]", standalone=True)
    assert run("draw", "BN") == draw.svg("BN", standalone=True)
    assert run("draw", "BN", "LN", "--lang", "zh") == draw.row(["BN", "LN"], lang="zh", standalone=True)


def test_backends_are_shown():
    assert run("backends").strip() == str(normkit.show_backends())


def test_version():
    assert run("--version") == f"normkit {normkit.__version__}\n"


def test_errors_are_shown_as_text():
    assert run("explain", "group_nrom", code=2) == (
        "Error: no normalization is called 'group_nrom': did you mean 'group_norm'?\n"
    )
    assert run("draw", "b [c", code=2) == (
        "Error: '[' is never closed\n    b [c\n      ^\nadd ']' after its last axis\n"
    )
    assert "'fr' is not one of 'en', 'zh'" in run("explain", "BN", "--lang", "fr", code=2)


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli.catalog, "find", lambda name: 1 / 0)
    assert isinstance(CliRunner().invoke(cli.app, ["explain", "BN"]).exception, ZeroDivisionError)


COMPARE = {name: parameter.default for name, parameter in inspect.signature(study.compare).parameters.items()}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the command asks `compare` for, without the minutes that the answer takes."""
    seen: dict[str, object] = {}

    def compare(task: object, **options: object) -> SimpleNamespace:
        seen.update(options, task=task)
        return SimpleNamespace(path=Path("somewhere/index.html"), complete=seen["seeds"] != 2, evidence=())

    monkeypatch.setattr(cli.study, "compare", compare)
    monkeypatch.setattr("normkit.study.report.terminal.both", lambda comparison, lang: f"table of {comparison.path}")
    return seen


def test_compare_without_options_asks_for_the_defaults(asked: dict[str, object]):
    printed = run("compare")
    assert printed == f"table of {Path('somewhere/index.html')}\nReport: {Path('somewhere/index.html')}\n"
    assert asked == COMPARE | {"batch_sizes": list(COMPARE["batch_sizes"]), "out": Path(COMPARE["out"])}


def test_compare_passes_every_option_on(asked: dict[str, object]):
    run(
        *("compare", "--methods", "none, BN", "--batch-sizes", "2,16", "--seeds", "3", "--trials", "4"),
        *("--steps", "50", "--workers", "1", "--out", "there", "--seed", "7", "--no-progress", "--resume"),
        *("--store", "sqlite:///x", "--executor", "ray", "--address", "auto", "--time-limit", "2.5", "--lang", "zh"),
        *("--claims", "BN-4, GN-1", "--full", "--minutes", "3", "--device", "meta", "--dtype", "bfloat16"),
        *("--checkpoints", "--until-resolved", "--no-discard"),
    )
    assert asked == {
        "task": None, "methods": ["none", "BN"], "batch_sizes": [2, 16], "seeds": 3, "trials": 4, "steps": 50,
        "workers": 1, "out": Path("there"), "seed": 7, "progress": False, "store": "sqlite:///x", "resume": True,
        "executor": "ray", "address": "auto", "time_limit": 2.5, "claims": ["BN-4", "GN-1"], "full": True,
        "minutes": 3.0, "device": "meta", "dtype": "bfloat16", "lang": "zh",
        "checkpoints": True, "until_resolved": True, "discard": False,
    }  # fmt: skip
    run("compare", "--no-claims")
    assert asked["claims"] is False
    assert "exclude each other: give one" in run("compare", "--claims", "BN-1", "--no-claims", code=2)


def test_a_mistyped_task_is_answered_with_those_that_are_built_in():
    printed = run("compare", "transformrs", code=2)
    assert "a task is built in, or named as pkg.module:name" in printed
    assert "did you mean 'transformers'" in printed


def test_compare_takes_a_task_by_name(asked: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "given_task.py").write_text(
        "import torch, normkit\n"
        "x, y = torch.randn(20, 4), torch.randn(20, 1)\n"
        "task = normkit.Task(lambda: torch.nn.Linear(4, 1), (x, y), (x, y), loss=torch.nn.functional.mse_loss)\n"
        "def make():\n    return task\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("task", "make"):
        run("compare", f"given_task:{name}")
        assert isinstance(asked["task"], normkit.Task)
        assert asked["task"].origin == f"given_task:{name}"
    assert "must be a normkit.Task or a function that makes one, got Tensor" in run("compare", "given_task:x", code=2)
    assert "given_task has no 'taks': did you mean 'task'?" in run("compare", "given_task:taks", code=2)
    assert "must be importable, got ModuleNotFoundError" in run("compare", "no_such_module:task", code=2)
    assert "named as pkg.module:name, got 'task'" in run("compare", "task", code=2)


def test_compare_dry_run_shows_the_plan_and_trains_nothing_to_the_end(tmp_path: Path):
    printed = run(
        *("compare", "--dry-run", "--methods", "BN", "--batch-sizes", "4", "--seeds", "2", "--trials", "3"),
        *("--steps", "40", "--no-claims", "--out", str(tmp_path / "none"), "--workers", "2"),
    )
    assert re.search(r"digits +2 +4 +40 +16 +0 +\d+ s\n", printed)
    assert re.search(r"16 runs are left: about \d+ s with 2 at a time", printed)
    assert not (tmp_path / "none").exists()


def test_compare_takes_the_store_from_the_environment(asked: dict[str, object], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NORMKIT_STORE", "postgresql+psycopg://owner:secret@host/runs")
    assert "secret" not in run("compare")
    assert asked["store"] == "postgresql+psycopg://owner:secret@host/runs"
    assert "secret" not in run("compare", "--help")


def test_compare_interrupted_ends_as_a_shell_expects(asked: dict[str, object]):
    printed = run("compare", "--seeds", "2", code=130)
    assert "Report: " in printed
    assert printed.endswith("Interrupted. The same command continues from here.\n")


def test_compare_refuses_what_is_no_number(asked: dict[str, object]):
    assert "a batch size is a whole number, got '4x': write --batch-sizes 4,64" in run(
        "compare", "--batch-sizes", "4x", code=2
    )
    assert not asked


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_without_typer_the_command_says_what_to_install():
    done = python("import sys; sys.modules['typer'] = None; import normkit.cli")
    assert done.returncode == 1
    assert done.stderr == (
        "normkit's command line needs typer and rich; missing: typer. Install them: pip install 'normkit[cli]'\n"
    )


def test_the_catalog_is_shown_without_torch():
    done = python(
        "import sys; from normkit.cli import app\n"
        "try: app(['draw', 'BN', 'b [c]'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    assert done.stdout.endswith("</svg>\nFalse\n"), done.stderr
