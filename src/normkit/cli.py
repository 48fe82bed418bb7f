"""The command line: arguments and printing only; all work is done by the modules it calls."""

from __future__ import annotations

import inspect
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from normkit import __version__, catalog, draw, study
from normkit.catalog import show
from normkit.errors import NormkitError

try:
    import typer
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from typer.core import TyperGroup
except ModuleNotFoundError as error:
    # The core needs none of them, and a user of the console script should not be shown a traceback.
    raise SystemExit(
        f"normkit's command line needs typer and rich; missing: {error.name}. Install them: pip install 'normkit[cli]'"
    ) from None


class _Group(TyperGroup):
    """Shows normkit's own errors as text; everything else is a defect and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except NormkitError as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(2) from None


class Lang(StrEnum):
    """Language of the catalog's texts."""

    EN = "en"
    ZH = "zh"


app = typer.Typer(
    cls=_Group,
    help="One engine for every normalization, and the tools to choose, check and change the normalization of a model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_Language = Annotated[Lang, typer.Option(help="Language of the texts.")]
_COMPARE: dict[str, Any] = {name: p.default for name, p in inspect.signature(study.compare).parameters.items()}


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"normkit {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="A method: group_norm, GN, GroupNorm ...")],
    lang: _Language = Lang.EN,
) -> None:
    """Show what is known of one method: region, formula, use, claims, paper."""
    method = catalog.find(name)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, lines in show.card(method, lang):
        # A pattern's brackets would be read as markup.
        grid.add_row(label, "\n".join(line.replace("[", r"\[") for line in lines))
    console = Console()
    console.print(f"[bold]{method.title.to(lang)}[/]  {method.name}\n", highlight=False)
    console.print(grid)


@app.command()
def methods(
    as_json: Annotated[bool, typer.Option("--json", help="As data: the whole catalog.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="As a page: the whole catalog.")] = False,
    lang: _Language = Lang.EN,
) -> None:
    """Compare all methods: region, statistics, use, claimed strengths and weaknesses."""
    if as_json and as_markdown:
        raise typer.BadParameter("--json and --markdown are two forms of the same table: give one")
    if as_json:
        typer.echo(json.dumps(show.data(lang), ensure_ascii=False, indent=2))
    elif as_markdown:
        typer.echo(show.markdown(lang), nl=False)
    else:
        headings, rows = show.table(lang)
        table = Table(box=box.SIMPLE_HEAD, show_lines=True)
        for heading in headings:
            # Folded rather than cut: Chinese has no spaces to break a line at. A pattern is one word.
            table.add_column(heading, overflow="fold", no_wrap=heading == headings[1])
        for row in rows:
            table.add_row(*(cell.replace("[", r"\[") for cell in row))
        Console().print(table)


@app.command("draw")
def draw_(
    subjects: Annotated[list[str], typer.Argument(help="Patterns such as 'b (g [c]) [...]', or names of methods.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", dir_okay=False, help="File to write; else it is shown.")
    ] = None,
    lang: _Language = Lang.EN,
) -> None:
    """Draw regions as SVG: one alone, or several side by side with their names."""
    if len(subjects) == 1:
        picture = draw.svg(subjects[0], standalone=True)
    else:
        picture = draw.row(subjects, lang=lang, standalone=True)
    if out is None:
        typer.echo(picture, nl=False)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(picture, encoding="utf-8")
        typer.echo(f"wrote {out}")


@app.command()
def backends() -> None:
    """Say which kernels are in use, and why."""
    from normkit import show_backends

    typer.echo(str(show_backends()))


@app.command()
def compare(
    methods: Annotated[str, typer.Option(help="Names, with commas between.")] = ",".join(_COMPARE["methods"]),
    batch_sizes: Annotated[str, typer.Option(help="Images per step, with commas between.")] = ",".join(
        map(str, _COMPARE["batch_sizes"])
    ),
    seeds: Annotated[int, typer.Option(help="Runs behind each result.")] = _COMPARE["seeds"],
    trials: Annotated[int, typer.Option(help="Learning rates tried for each method.")] = _COMPARE["trials"],
    steps: Annotated[int, typer.Option(help="Training steps of one run.")] = _COMPARE["steps"],
    workers: Annotated[int | None, typer.Option(help="Processes; without, one per core.")] = _COMPARE["workers"],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of the report.")] = Path(_COMPARE["out"]),
    seed: Annotated[int, typer.Option(help="Where all randomness comes from.")] = _COMPARE["seed"],
    progress: Annotated[bool, typer.Option(help="Show bars.")] = _COMPARE["progress"],
) -> None:
    """Train a small network under every normalization at an equal tuning budget; write a report."""
    comparison = study.compare(
        methods=_listed(methods),
        batch_sizes=[_whole(size) for size in _listed(batch_sizes)],
        seeds=seeds,
        trials=trials,
        steps=steps,
        workers=workers,
        out=out,
        seed=seed,
        progress=progress,
    )
    # The title of the table is the answer.
    Console().print(study.table(comparison))
    typer.echo(f"Report: {comparison.path}")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise typer.BadParameter(f"a batch size is a whole number, got {text!r}: write --batch-sizes 4,64")
    return int(text)
