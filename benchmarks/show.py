"""Tables and pictures from result files alone: ``python -m benchmarks.show benchmarks/results/cpu-*.json``."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.gpu import report as gpu
from benchmarks.speed import report as cpu
from normkit.catalog import LANGUAGES, Text

MARKER = "<!-- results -->"
app = typer.Typer()

PICTURES = {
    "bars": Text("the cells by group", "按组汇总的各项"),
    "speedups": Text("speed-up of every cell", "每一项的加速比"),
    "roofline": Text("bytes per second", "每秒字节数"),
}


def translations(page: Path) -> dict[str, Path]:
    """The same page in each language; one that is not in docs/en or docs/zh is English.

    >>> [str(path) for path in translations(Path("docs/en/engine/gpu.md")).values()]
    ['docs/en/engine/gpu.md', 'docs/zh/engine/gpu.md']
    """
    found = {lang: Path(re.sub("docs/(en|zh)/", f"docs/{lang}/", page.as_posix())) for lang in LANGUAGES}
    return found if len({*found.values()}) > 1 else {"en": page}


@app.command()
def main(
    paths: Annotated[
        list[Path],
        typer.Argument(help="result files, of one GPU or of CPUs; tables and pictures are written next to each"),
    ],
    docs: Annotated[
        Path | None,
        typer.Option(help="page in which the part between the markers is replaced, in docs/en and in docs/zh alike"),
    ] = None,
) -> None:
    """Print the summary; write the table of all cells and the pictures, and bring a page up to date."""
    files = [json.loads(path.read_text()) for path in paths]
    on_gpu = "gpu" in files[0]["machine"]
    if on_gpu and len(files) > 1:
        raise typer.BadParameter("one result file of a GPU at a time")

    def tables(lang: str = "en") -> str:
        return gpu.summary(files[0], lang) if on_gpu else cpu.summary(files, lang)

    drawn = [picture for path, results in zip(paths, files, strict=True) for picture in _write(path, results)]
    for lang, page in translations(docs).items() if docs is not None else ():
        before, _, after = page.read_text(encoding="utf-8").split(MARKER)
        folder = page.resolve().parent
        links = [f"![{name.to(lang)}]({os.path.relpath(to.resolve(), folder)})" for name, to in drawn]
        inside = "\n\n".join((tables(lang), *links))
        page.write_text(f"{before}{MARKER}\n\n{inside}\n\n{MARKER}{after}", encoding="utf-8")
    typer.echo(tables())


def _write(path: Path, results: dict[str, Any]) -> list[tuple[Text, Path]]:
    """The table of all cells and the pictures next to a result file; names and paths of the pictures."""
    from benchmarks.speed.pictures import roofline, speedups

    if "gpu" in results["machine"]:
        text, drawings = gpu.summary(results), {gpu.bars: results}
    else:
        text = f"{cpu.summary([results])}\n\n{cpu.table(results)}"
        drawings = dict.fromkeys((speedups, roofline), cpu.quiet_rows(results))
    path.with_suffix(".md").write_text(f"{text}\n", encoding="utf-8")
    found = []
    for draw, given in drawings.items():
        target = path.with_name(f"{path.stem}-{draw.__name__}.svg")
        draw(given, target)
        found.append((PICTURES[draw.__name__], target))
    return found


if __name__ == "__main__":
    app()
