"""The command line: arguments and printing only; all work is done by the modules it calls.

Over 400 lines, because typer reads every option of a command from its signature.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from normkit import __version__, catalog, draw, settings, study
from normkit.catalog import show
from normkit.errors import NormkitError

try:
    import typer
    from rich import box
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text
    from typer.core import TyperGroup
except ModuleNotFoundError as error:
    # The core does not need them, and users of the console script should not see a traceback.
    raise SystemExit(
        f"normkit's command line needs typer and rich; missing: {error.name}. Install them: pip install 'normkit[cli]'"
    ) from None


START = """\
normkit: one engine for every normalization, and the tools to choose, check and
change the normalization of a PyTorch model.

In Python:

import torch, normkit
# The layer: every norm of torch.nn and many more, or any region as a pattern.
norm = normkit.Norm("b (g [c]) [...]", num_features=8, num_groups=4)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), normkit.BatchNorm2d(8))
# Check: audit finds problems, watch records statistics while a model trains.
print(normkit.audit(model, torch.randn(4, 3, 16, 16)))
# Change: convert, insert, fold, freeze, recalibrate and others.
model, changes = normkit.convert(model, "group_norm", num_groups=4)

In a shell:

# Choose: compare trains a model under each normalization, and writes a report.
normkit compare digits --methods BN,GN --seeds 3 --steps 50
# Look up: one method, or all.
normkit explain GN

Read more: normkit --help, normkit compare --help, help(normkit.convert).
"""
"""What ``normkit`` shows without arguments. Lines of code start at the margin, so that they can be pasted."""


class _Group(TyperGroup):
    """Shows normkit's own errors as text; any other error is a bug and keeps its traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            for line in START.splitlines():
                comment, heading = line.startswith("#"), line.startswith("In ")
                typer.secho(line, fg="cyan" if comment else None, bold=heading or None)
            ctx.exit()
        return super().parse_args(ctx, args)

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
    add_completion=False,
    pretty_exceptions_enable=False,
)
_INTERRUPTED = 130
"""The exit code that a shell expects after Ctrl-C: 128 plus the number of SIGINT."""
_NARROW = 110
"""In fewer columns the table of methods would split words."""
_Language = Annotated[Lang, typer.Option(help="Language of the texts.")]
_COMPARE = study.DEFAULTS
_MARKED = re.compile(r"(•|·|[+-]|[A-Za-z]+\d?-\d+)\s*(.+)")
"""An entry of a list: its mark, which has a separate column, and its text."""


def _below(heading: str) -> Callable[..., Any]:
    """Options below a heading of the help."""
    return partial(typer.Option, rich_help_panel=heading)


_trained, _running, _result = _below("What is trained"), _below("How it runs"), _below("Results")
"""The options of ``normkit compare``."""


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
        _trained(
            help="Names of methods, or unchanged, separated by commas; only these and none are trained.",
            show_default="BN,LN,IN,GN,WN",
        ),
    ] = "",
    batch_sizes: Annotated[str, _trained(help="Samples per training step, separated by commas.")] = ",".join(
        map(str, _COMPARE["batch_sizes"])
    ),
    seeds: Annotated[int, _trained(help="Training runs for each result.")] = _COMPARE["seeds"],
    trials: Annotated[
        int | None, _trained(help="Learning rates tried for each method.", show_default="the task's")
    ] = _COMPARE["trials"],
    discard: Annotated[
        bool | None,
        _trained("--discard/--no-discard", help="Discard learning rates early.", show_default="if it saves time"),
    ] = _COMPARE["discard"],
    steps: Annotated[int | None, _trained(help="Training steps of one run.", show_default="the task's")] = _COMPARE[
        "steps"
    ],
    until_resolved: Annotated[
        bool, _trained("--until-resolved", help="Add seeds until every method is told apart from the leader.")
    ] = _COMPARE["until_resolved"],
    seed: Annotated[int, _trained(help="The seed of all random numbers.")] = _COMPARE["seed"],
    claims: Annotated[
        str,
        _trained(
            help="Claims of the catalog to measure too, such as BN-4,GN-1, or all; with the methods that they compare.",
            show_default="all, none with a task or --methods",
        ),
    ] = "",
    no_claims: Annotated[bool, _trained("--no-claims", help="Only the comparison.")] = False,
    full: Annotated[bool, _trained("--full", help="More seeds for each claim.")] = _COMPARE["full"],
    dry_run: Annotated[bool, _running("--dry-run", help="Show the plan and its time, and stop.")] = False,
    minutes: Annotated[float | None, _running(help="Minutes after which no run starts.")] = _COMPARE["minutes"],
    time_limit: Annotated[float | None, _running(help="Seconds a run may take.")] = _COMPARE["time_limit"],
    device: Annotated[str, _running(help="Where to train: cpu, cuda, cuda:1.")] = _COMPARE["device"],
    dtype: Annotated[str, _running(help="float32, float64, or bfloat16 for autocast.")] = _COMPARE["dtype"],
    workers: Annotated[int | None, _running(help="Processes.", show_default="one per core")] = _COMPARE["workers"],
    executor: Annotated[str, _running(help="processes, or ray for a cluster.")] = _COMPARE["executor"],
    address: Annotated[str | None, _running(help="Address of the Ray cluster.")] = _COMPARE["address"],
    progress: Annotated[bool, _running(help="Show a progress bar.")] = _COMPARE["progress"],
    out: Annotated[Path, _result(file_okay=False, help="Folder of the report.")] = Path(_COMPARE["out"]),
    lang: Annotated[Lang, _result(help="Language of the texts.")] = Lang.EN,
    checkpoints: Annotated[
        bool, _result("--checkpoints", help="Keep the best run of each method in the folder checkpoints of --out.")
    ] = _COMPARE["checkpoints"],
    resume: Annotated[bool, _result("--resume", help="Fail if there is nothing to resume.")] = False,
    store: Annotated[
        str | None,
        _result(envvar=settings.STORE.name, help="URL of a database for the runs.", show_default="a file in --out"),
    ] = _COMPARE["store"],
) -> None:
    """Find out which normalization to use: train a model under each, with an equal tuning budget.

    For instance: normkit compare my_project.tasks:task --methods BN,GN --dry-run

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
    name: Annotated[list[str], typer.Argument(help="A method: group_norm, GN, GroupNorm, group norm ...")],
    lang: _Language = Lang.EN,
) -> None:
    """Show the facts about one method: region, formula, use, claims, paper."""
    method = catalog.find(" ".join(name))
    title = Text(method.title.to(lang), style="bold").append(f"  {method.name}", style="not bold")
    _print(title, Text(), _card(show.card(method, lang)))


@app.command()
def methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole catalog as JSON.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the whole catalog as a page in Markdown.")
    ] = False,
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
    if Console().width < _NARROW:
        for title, *cells in rows:
            lines = [(heading, cell.split("\n")) for heading, cell in zip(headings[1:], cells, strict=True)]
            _print(Text(title, style="bold"), Text(), _card(lines), Text())
    else:
        table = Table(box=box.SIMPLE_HEAD, show_lines=True)
        for heading in headings:
            # A pattern is one word.
            table.add_column(heading, overflow="fold", no_wrap=heading == headings[1])
        for row in rows:
            table.add_row(*(_lines(cell.split("\n")) for cell in row))
        _print(table)


def _card(facts: Iterable[tuple[str, Sequence[str]]]) -> Table:
    """Labels, and what is known under each."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, texts in facts:
        grid.add_row(label, _lines(texts))
    return grid


def _lines(texts: Sequence[str]) -> RenderableType:
    """Texts below one another. The entries of a list have their marks to the left of all their lines."""
    marked = [_MARKED.fullmatch(text) for text in texts]
    if not all(marked):
        # Folded, not cut: Chinese has no spaces for line breaks.
        return Text("\n".join(texts), overflow="fold")
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for match in marked:
        grid.add_row(*(match.groups() if match else ()))
    return grid


def _print(*parts: RenderableType) -> None:
    """On a terminal in colour; elsewhere without the spaces that fill a column."""
    console = Console(markup=False, highlight=False, emoji=False)
    with console.capture() as printed:
        for part in parts:
            console.print(part)
    text = printed.get()
    typer.echo(text if console.is_terminal else re.sub(r" +$", "", text, flags=re.MULTILINE), nl=False)


@app.command("draw")
def draw_(
    subjects: Annotated[list[str], typer.Argument(help=r"Patterns such as 'b (g \[c]) [...]', or names of methods.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", dir_okay=False, help="File to write; by default the SVG is printed.")
    ] = None,
    lang: _Language = Lang.EN,
) -> None:
    r"""Draw regions as SVG: a single one, or several in a row with their names.

    For instance: normkit draw "b (g \[c]) [...]" -o region.svg
    """
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
        str | None, typer.Option(help="Exit with 1 from this severity up, or never.", show_default="warning")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="TOML with the table tool.normkit.audit.", show_default="./pyproject.toml"),
    ] = None,
) -> None:
    """Find problems with the normalization in a model.

    For instance: normkit audit torchvision.models:resnet18 --shape 4,3,224,224

    It exits with 1 if it finds a problem of the severity --fail-on or above, and with 0 if it finds none.
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
