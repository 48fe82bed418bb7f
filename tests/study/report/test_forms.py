"""The notebook, the terminal and the command that writes a report again."""

from __future__ import annotations

import errno
from pathlib import Path

import made_up
import pytest
from parsed import Page
from typer.testing import CliRunner

from normkit import cli
from normkit.errors import ArgumentError, StateError
from normkit.study.comparison import Comparison
from normkit.study.report import again, write

LANGS = ("en", "zh")


@pytest.mark.parametrize("lang", LANGS)
def test_the_notebook_shows_the_table(found: Comparison, lang: str) -> None:
    from normkit.study.report.notebook import render

    text = render(found, lang)
    parsed = Page(text)
    assert "<script" not in text
    assert [str(e["text"]) for e in parsed.all("th")] == list(found.headings(lang))
    cells = [str(e["text"]) for e in parsed.all("td")]
    assert cells == [text for row in found.rows(lang) for text in row]
    assert found.answer.to(lang) in str(parsed.elements[0]["text"])
    assert found._repr_html_() == render(found)


def test_the_terminal_shows_the_table(found: Comparison) -> None:
    from rich.console import Console

    console = Console(width=130, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(found)
    printed = console.export_text()
    for row in found.rows():
        assert any(all(text in line for text in row[1:]) for line in printed.splitlines())


# The command


def test_the_report_command_writes_the_page_again(found: Comparison, tmp_path: Path, pages: dict[str, str]) -> None:
    write(found, tmp_path)
    (tmp_path / "index.html").unlink()
    before = (tmp_path / "results.json").read_bytes()
    runner = CliRunner()
    result = runner.invoke(cli.app, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "index.html").read_text("utf-8") == pages["en"]
    other = tmp_path / "new" / "zh.html"
    result = runner.invoke(cli.app, ["report", str(tmp_path / "results.json"), "--lang", "zh", "--out", str(other)])
    assert result.exit_code == 0, result.output
    assert other.read_text("utf-8") == pages["zh"]
    assert (tmp_path / "results.json").read_bytes() == before
    result = runner.invoke(cli.app, ["report", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "give the folder that was its --out" in result.output


def test_a_page_that_cannot_be_written_is_an_error(found: Comparison, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"out must be a file that can be written, got .*: name another"):
        again(found, tmp_path, page=tmp_path / "file" / "index.html")


def test_a_report_without_room_says_so_and_leaves_no_half_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index.html").write_text("the old one", encoding="utf-8")

    def fill(path: Path, text: str, encoding: str) -> int:
        path.write_bytes(text[:10].encode(encoding))
        if "html" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return path.write_bytes(text.encode(encoding))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fill)
        with pytest.raises(
            StateError, match=r"needs a writable folder with free space.*No space left.*: correct this, and the same"
        ):
            write(made_up.of_digits(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "index.html"}
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == "the old one"
