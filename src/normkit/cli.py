"""The command line: arguments and printing only; all work is done by the modules it calls."""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from normkit import __version__, catalog, draw, settings, study
from normkit.catalog import show
from normkit.errors import NormkitError

try:
    import typer
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from typer.core import TyperGroup
except ModuleNotFoundError as error:
    # The core does not need them, and users of the console script should not see a traceback.
    raise SystemExit(
        f"normkit's command line needs typer and rich; missing: {error.name}. Install them: pip install 'normkit[cli]'"
    ) from None


class _Group(TyperGroup):
    """Shows normkit's own errors as text; any other error is a bug and keeps its traceback."""

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
_INTERRUPTED = 130
"""The exit code that a shell expects after Ctrl-C: 128 plus the number of SIGINT."""
_NARROW = 110
"""In fewer columns the table of methods would split words."""
_Language = Annotated[Lang, typer.Option(help="Language of the texts.")]
_COMPARE = study.DEFAULTS


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"normkit {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


# Over 80 lines, because typer reads the options of the command from its signature.
@app.command()
def compare(
    task: Annotated[
        str | None,
        typer.Argument(
            help="digits, characters, sequences, transformers or forecast, which are built in, or pkg.module:task, a "
            "normkit.Task or a function that makes one.",
            show_default="digits, and the claims",
        ),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Names of methods, or unchanged, separated by commas; only these and none are trained.",
            show_default="BN,LN,IN,GN,WN",
        ),
    ] = "",
    batch_sizes: Annotated[str, typer.Option(help="Samples per training step, separated by commas.")] = ",".join(
        map(str, _COMPARE["batch_sizes"])
    ),
    seeds: Annotated[int, typer.Option(help="Training runs for each result.")] = _COMPARE["seeds"],
    trials: Annotated[int, typer.Option(help="Learning rates tried for each method.")] = _COMPARE["trials"],
    steps: Annotated[int | None, typer.Option(help="Training steps of one run.", show_default="the task's")] = _COMPARE[
        "steps"
    ],
    claims: Annotated[
        str,
        typer.Option(
            help="Claims of the catalog to measure too, such as BN-4,GN-1, or all; with the methods that they compare.",
            show_default="all, none with a task or --methods",
        ),
    ] = "",
    no_claims: Annotated[bool, typer.Option("--no-claims", help="Only the comparison.")] = False,
    full: Annotated[bool, typer.Option("--full", help="More seeds for each claim.")] = _COMPARE["full"],
    minutes: Annotated[float | None, typer.Option(help="Minutes after which no run starts.")] = _COMPARE["minutes"],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and its time, and stop.")] = False,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1.")] = _COMPARE["device"],
    dtype: Annotated[str, typer.Option(help="float32, float64, or bfloat16 for autocast.")] = _COMPARE["dtype"],
    workers: Annotated[int | None, typer.Option(help="Processes.", show_default="one per core")] = _COMPARE["workers"],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of the report.")] = Path(_COMPARE["out"]),
    seed: Annotated[int, typer.Option(help="The seed of all random numbers.")] = _COMPARE["seed"],
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = _COMPARE["progress"],
    store: Annotated[
        str | None,
        typer.Option(
            envvar=settings.STORE.name, help="URL of a database for the finished runs.", show_default="a file in --out"
        ),
    ] = _COMPARE["store"],
    resume: Annotated[bool, typer.Option("--resume", help="Fail if there is nothing to resume.")] = False,
    executor: Annotated[str, typer.Option(help="processes, or ray for a cluster.")] = _COMPARE["executor"],
    address: Annotated[str | None, typer.Option(help="Address of the Ray cluster.")] = _COMPARE["address"],
    time_limit: Annotated[float | None, typer.Option(help="Seconds a run may take.")] = _COMPARE["time_limit"],
    lang: _Language = Lang.EN,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Keep the best run of each method in the folder checkpoints of --out.")
    ] = _COMPARE["checkpoints"],
    until_resolved: Annotated[
        bool, typer.Option("--until-resolved", help="Add seeds until every method is told apart from the leader.")
    ] = _COMPARE["until_resolved"],
    discard: Annotated[
        bool | None,
        typer.Option("--discard/--no-discard", help="Discard learning rates early.", show_default="if it saves time"),
    ] = _COMPARE["discard"],
) -> None:
    """Find out which normalization to use: train a model under each, with an equal tuning budget.

    Without a task and methods it trains a small network on built-in data and measures every claim of the catalog.
    It takes minutes, and writes index.html and results.json to --out.
    After an interrupt (Ctrl-C), the same command continues.
    """
    if claims and no_claims:
        raise typer.BadParameter("--claims and --no-claims exclude each other: give one")
    asked: dict[str, Any] = {
        "methods": _listed(methods) or None,
        "batch_sizes": [_whole(size) for size in _listed(batch_sizes)],
        "seeds": seeds,
        "trials": trials,
        "steps": steps,
        "claims": False if no_claims else claims.strip() == "all" or _listed(claims) or None,
        "full": full,
        "device": device,
        "dtype": dtype,
        "seed": seed,
        "discard": discard,
    }
    others = {
        "minutes": minutes,
        "workers": workers,
        "executor": executor,
        "address": address,
        "time_limit": time_limit,
        "lang": lang,
    }
    study.check(task or None, **asked, **others)
    work = study.named_task(task) if task else None
    if dry_run:
        typer.echo(str(study.plan(work, workers=workers, out=out, store=store, **asked)))
        return
    comparison = study.compare(
        work,
        **asked,
        minutes=minutes,
        workers=workers,
        out=out,
        progress=progress,
        store=store,
        resume=resume,
        executor=executor,
        address=address,
        time_limit=time_limit,
        lang=lang,
        checkpoints=checkpoints,
        until_resolved=until_resolved,
    )
    if comparison.path is None:
        # Another rank of torchrun reports.
        return
    from normkit.study.report import terminal

    Console().print(terminal.both(comparison, lang))
    if comparison.evidence:
        Console().print(terminal.findings(comparison, lang))
    typer.echo(f"Report: {comparison.path}")
    if not comparison.complete:
        late = minutes is not None
        typer.echo(f"{'Time is up' if late else 'Interrupted'}. The same command continues from here.", err=True)
        raise typer.Exit(0 if late else _INTERRUPTED)


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="A method: group_norm, GN, GroupNorm ...")],
    lang: _Language = Lang.EN,
) -> None:
    """Show the facts about one method: region, formula, use, claims, paper."""
    method = catalog.find(name)
    _print_card(Console(), f"[bold]{method.title.to(lang)}[/]  {method.name}", show.card(method, lang))


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
        return
    if as_markdown:
        typer.echo(show.markdown(lang), nl=False)
        return
    headings, rows = show.table(lang)
    console = Console()
    if console.width < _NARROW:
        for title, *cells in rows:
            lines = [(heading, cell.split("\n")) for heading, cell in zip(headings[1:], cells, strict=True)]
            _print_card(console, f"[bold]{title}[/]", lines)
            console.print()
    else:
        table = Table(box=box.SIMPLE_HEAD, show_lines=True)
        for heading in headings:
            # Folded, not cut: Chinese has no spaces for line breaks. A pattern is one word.
            table.add_column(heading, overflow="fold", no_wrap=heading == headings[1])
        for row in rows:
            table.add_row(*(cell.replace("[", r"\[") for cell in row))
        console.print(table)


def _print_card(console: Console, title: str, lines: Iterable[tuple[str, Iterable[str]]]) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, texts in lines:
        # rich would read the brackets of a pattern as markup.
        grid.add_row(label, "\n".join(text.replace("[", r"\[") for text in texts))
    console.print(f"{title}\n", highlight=False)
    console.print(grid)


@app.command("draw")
def draw_(
    subjects: Annotated[list[str], typer.Argument(help=r"Patterns such as 'b (g \[c]) [...]', or names of methods.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", dir_okay=False, help="File to write; by default the SVG is printed.")
    ] = None,
    lang: _Language = Lang.EN,
) -> None:
    """Draw regions as SVG: a single one, or several in a row with their names."""
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
def audit(
    target: Annotated[
        str | None,
        typer.Argument(help="pkg.module:factory or file.py:factory; it returns a model, or a model and an example."),
    ] = None,
    shape: Annotated[str | None, typer.Option(help="Shape of a random example, such as 2,3,64,64.")] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Size of a vocabulary: the random example has whole numbers below it.")
    ] = None,
    loader: Annotated[str | None, typer.Option(help="file.py:function that returns batches.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="file.py:function that makes one for the model.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples of one optimizer step, over all ranks.")] = None,
    world_size: Annotated[int | None, typer.Option(help="Number of ranks.", show_default="1")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Micro-batches of one step.", show_default="1")] = None,
    per_sample: Annotated[
        bool | None, typer.Option("--per-sample", help="Name the layers that mix samples.", show_default="no")
    ] = None,
    invariance: Annotated[
        bool | None,
        typer.Option("--invariance", help="Measure which norms give the same bits in any batch.", show_default="no"),
    ] = None,
    ignore: Annotated[str, typer.Option(help="Codes to suppress, separated by commas: NK101,layer1.*:NK301.")] = "",
    baseline: Annotated[
        str | None, typer.Option(help="A report of --format json; its findings are not reported again.")
    ] = None,
    form: Annotated[str | None, typer.Option("--format", help="text, json or sarif.", show_default="text")] = None,
    lang: Annotated[
        Lang | None, typer.Option(help="Language of titles, reasons and fixes in the text.", show_default="en")
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(help="Exit with 1 from this severity up, or never.", show_default="warning"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="TOML with the table tool.normkit.audit.", show_default="./pyproject.toml"),
    ] = None,
) -> None:
    """Find problems with the normalization in a model.

    The table tool.normkit.audit in pyproject.toml may have the same settings; options given here override it.
    """
    from normkit.tools.audit import command
    from normkit.tools.audit.options import options

    asked = options(
        config,
        target=target,
        shape=shape,
        tokens=tokens,
        loader=loader,
        optimizer=optimizer,
        batch_size=batch_size,
        world_size=world_size,
        accumulate=accumulate,
        per_sample=per_sample,
        invariance=invariance,
        ignore=_listed(ignore),
        baseline=baseline,
        format=form,
        lang=lang,
        fail_on=fail_on,
    )
    text, code = command.run(asked)
    typer.echo(text)
    raise typer.Exit(code)


@app.command()
def backends() -> None:
    """Show which kernels are in use, and why."""
    from normkit import show_backends

    typer.echo(str(show_backends()))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The --out folder of normkit compare, or its results.json.")],
    lang: _Language = Lang.EN,
    out: Annotated[Path | None, typer.Option("--out", "-o", dir_okay=False, help="The page to write.")] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="Also write runs.parquet and cells.parquet.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write logs for TensorBoard.")] = False,
    figures: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder in which to write every figure as SVG, and its data as CSV."),
    ] = None,
) -> None:
    """Write the page of a comparison again, from its results.json; nothing is run."""
    from normkit.study import report as pages
    from normkit.study.comparison import Comparison

    found = Comparison.load(folder)
    for line in pages.again(found, folder, lang, out, parquet=parquet, tensorboard=tensorboard, figures=figures):
        typer.echo(line)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise typer.BadParameter(f"a batch size is a whole number, got {text!r}: write --batch-sizes 4,64")
    return int(text)
