"""The documents are true: paths exist, examples run, generated files are up to date."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from typer.testing import CliRunner

import normkit
import zoo
from normkit import cli

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("decisions/*.md")])
# The examples of the audit's rules have tests of their own, and the Chinese pages have the code of the English ones.
RUN = [path for path in DOCUMENTS if not {"zh", "audit"} & set(path.relative_to(ROOT).parts)]
MADE_BY_COMMANDS = ("report", ".venv", "build", "region.svg", "index.html", "results.json")
SUFFIXES = {".py", ".md", ".svg", ".toml", ".txt", ".h", ".cpp", ".html", ".css", ".json", ".yaml", ".so"}

CODE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
QUOTED = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def paths_in(text: str) -> set[str]:
    """Links, and texts in backticks that look like paths of this repository."""
    text = CODE.sub("", text)
    found = {link for link in LINK.findall(text) if "://" not in link}
    tops = {path.name for path in ROOT.iterdir()} | {path.name for path in (ROOT / "src" / "normkit").iterdir()}
    for word in QUOTED.findall(text):
        if re.fullmatch(r"[\w./*-]+", word) and (
            ("/" in word and word.split("/")[0] in tops) or (Path(word).suffix in SUFFIXES and Path(word).stem)
        ):
            found.add(word)
    return {path for path in found if path.split("/")[0] not in MADE_BY_COMMANDS}


def exists(path: str, document: Path) -> bool:
    return any(list(base.glob(path.rstrip("/"))) for base in (document.parent, ROOT, ROOT / "src" / "normkit"))


def test_paths_are_recognised():
    text = "`tests/gone.py` `csrc/` [x](docs/a.md#b) [y](https://a.b/c.md) `a * b.py` `x / y` `torch/csrc`"
    assert paths_in(text) == {"tests/gone.py", "csrc/", "docs/a.md"}
    assert exists("csrc/", ROOT / "README.md")
    assert not exists("tests/gone.py", ROOT / "README.md")


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_path_exists(document: Path):
    missing = [path for path in paths_in(document.read_text(encoding="utf-8")) if not exists(path, document)]
    assert not missing


def examples(document: Path) -> Iterator[ParameterSet]:
    """Each block of Python, with the block of plain text after it, if there is one: its output."""
    blocks = [*CODE.findall(document.read_text(encoding="utf-8")), ("", "")]
    for index, ((language, code), (after, text)) in enumerate(pairwise(blocks)):
        if language == "python":
            yield pytest.param(code, text if after == "text" else None, id=f"{name(document)} {index}")


@pytest.mark.parametrize(("code", "printed"), [example for document in RUN for example in examples(document)])
def test_every_example_runs(code: str, printed: str | None, capsys: pytest.CaptureFixture[str]):
    if re.search("import timm|from transformers", code):
        zoo._torchvision()
    exec(compile(code, "<example>", "exec"), {"__name__": "example"})
    if printed is not None:
        assert capsys.readouterr().out == printed


def modules() -> list[str]:
    return [
        module.name for module in pkgutil.walk_packages(normkit.__path__, "normkit.") if "_native" not in module.name
    ]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*")  # torch's compiler warns of torch, when imported
@pytest.mark.parametrize("module", modules())
def test_examples_in_docstrings(module: str):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_both_readmes_show_the_same_code():
    english, chinese = (CODE.findall((ROOT / f"README{end}.md").read_text(encoding="utf-8")) for end in ("", ".zh-CN"))
    assert english == chinese
    assert {language for language, _ in english} == {"sh", "python"}


GENERATED = [
    shlex.split(line)
    for language, code in CODE.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    for line in code.splitlines()
    if language == "sh"
]


def test_every_generated_file_has_its_command():
    targets = {command[-1] for command in GENERATED}
    assert targets == {
        "docs/en/methods/index.md",
        "docs/zh/methods/index.md",
        "docs/figures/regions.svg",
        "docs/figures/regions.zh.svg",
    }


@pytest.mark.parametrize("line", GENERATED, ids=lambda line: line[-1])
def test_generated_files_are_up_to_date(line: list[str], tmp_path: Path):
    command, redirection, target = line[:-2], line[-2], line[-1]
    assert command.pop(0) == "normkit"
    out = tmp_path / "out"
    if redirection == "-o":
        command += ["-o", str(out)]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    made = out.read_text(encoding="utf-8") if redirection == "-o" else result.output
    assert made == (ROOT / target).read_text(encoding="utf-8"), f"run: {' '.join(line)}"


def test_the_command_line_of_the_readme_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    blocks = CODE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    lines = [line for language, code in blocks if language == "sh" for line in code.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("normkit ")]
    assert len(commands) == 5
    for command in commands:
        # Asked for help, a command still checks its options, and the long one does not run.
        arguments = [*command, "--help"] if command[0] == "compare" else command
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 0, result.output


def test_make_has_the_targets_the_documents_name():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = {word for path in DOCUMENTS for word in re.findall(r"(?m)(?:`|^)make ([a-z]+)", path.read_text("utf-8"))}
    assert {"compare", "test"} <= named <= set(targets)
