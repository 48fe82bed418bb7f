"""Everything that one GPU can check in a few minutes: benchmarks/gpu_check.sh calls it after the set-up.

It runs the tests that need a GPU, and meanwhile builds the extension and compiles for the timings; then graphs, calls
of layers, a dozen cells and whole models, as long as there is time; and prints one table. The exit status is 1 if
anything of normkit failed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.gpu import cells as grid
from benchmarks.gpu import layers, models, report
from benchmarks.gpu.run import Run, everything, measured, warm
from benchmarks.speed.measure import RESULTS
from benchmarks.speed.workloads import Cell

ROOT = Path(__file__).parents[2]
PROCESSES = 8
SHARE_OF_TESTS = 0.5
"""Of the whole time."""
FOR_MODELS, FOR_MODEL, FOR_COMPILED = 30.0, 10.0, 45.0
"""Seconds that the cells leave for the models, and that one model needs, eager or compiled."""
FOR_TESTS, FOR_BUILD = 30.0, 45.0
"""Seconds that the last tests have at least, and to wait for the extension; without it, Python's way is measured."""
NO_TESTS = 5
"""The status of pytest where it has selected none."""
BUILD = """
import runpy, setuptools, sys
setup, names = setuptools.setup, sys.argv.pop(1).split(",")
def only(ext_modules, **others):
    setup(ext_modules=[extension for extension in ext_modules if extension.name in names], **others)
setuptools.setup = only
runpy.run_path("setup.py", run_name="__main__")
"""
"""Builds the extensions that are named, and no others."""

app = typer.Typer(pretty_exceptions_enable=False)


def output(dry: bool) -> Path:
    """Where the results go: $OUT if it is set, else benchmarks/results; those of a dry run are no results."""
    return Path(os.environ.get("OUT") or (tempfile.mkdtemp() if dry else RESULTS)) / "gpu-check.json"


def gpu_tests() -> dict[str, list[str]]:
    """The files with tests for a GPU: those that the compiled half of normkit has no part in, and the others."""
    found: dict[str, list[str]] = {"without the extension": [], "with the extension": []}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text("utf-8")
        # `marks` is what tests/kernels/interpreted.py gives tests that run on a GPU where there is one.
        if "mark.gpu" in text or re.search(r"^pytestmark = .*\bmarks\b", text, re.M):
            alone = path.name.startswith("test_triton") or path.parent.name == "functional"
            kind = "without the extension" if alone else "with the extension"
            found[kind].append(str(path.relative_to(ROOT)))
    return {kind: paths for kind, paths in found.items() if paths}


def commands(dry: bool) -> dict[str, list[str]]:
    """How tests are run: in several processes if pytest-xdist is there. A dry run takes a quick one."""
    mine = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rfE", "--tb=short"]
    if dry:
        return {"dry": [*mine, "tests/kernels/test_triton_schedules.py", "-k", "say_what_they_do"]}
    mine += ["-m", "gpu", "--continue-on-collection-errors"]
    if importlib.util.find_spec("xdist"):
        mine += ["-n", str(PROCESSES), "--dist", "worksteal"]
    return {kind: [*mine, *paths] for kind, paths in gpu_tests().items()}


def counts(text: str) -> dict[str, int]:
    """What pytest's last line counts.

    >>> counts("1 failed, 12 passed, 2 skipped in 3.21s")
    {'failed': 1, 'passed': 12, 'skipped': 2}
    """
    return {what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|skipped|error)", text)}


class Group:
    """A command in a group of processes of its own, which ends as a whole, with its output in a file."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        paths = os.pathsep.join((str(ROOT / "src"), *filter(None, sys.path)))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )

    def status(self, seconds: float) -> int | None:
        """Its status, or None if it had to be ended."""
        try:
            return self.process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return None


def tested(name: str, command: Sequence[str], seconds: float, log: Path) -> dict[str, Any]:
    """Run tests; the row has the counts, and the names of those that failed."""
    start = time.monotonic()
    status = Group(command, log).status(seconds)
    text = log.read_text()
    row: dict[str, Any] = {"name": f"tests {name}", "failed": None, "seconds": round(time.monotonic() - start, 1)}
    row["counts"] = counts(text[-500:])
    row["names"] = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.M)
    if status is None:
        row["failed"] = f"not over after {seconds:.0f} s"
    elif status not in (0, NO_TESTS):
        row["failed"] = f"status {status}, {row['counts'] or text[-300:]}"
    elif status == 0 and not row["counts"].get("passed"):
        row["failed"] = f"none has run: {row['counts']}"
    return row


class Extension:
    """The compiled half of normkit, built for this torch while tests run, and put in its place when it is whole.

    The kernels fit every torch, so where they are there, only the fast path is built, which takes a tenth of the time.
    """

    def __init__(self, log: Path, target: Path = ROOT / "src" / "normkit") -> None:
        self.target, self.folder = target, Path(tempfile.mkdtemp())
        missing = [name for name in ("_native", "_fastpath") if not list(target.glob(f"{name}*.so"))]
        build = [sys.executable, "-c", BUILD, ",".join(f"normkit.{name}" for name in missing), "-q", "build_ext"]
        build += ["--build-lib", str(self.folder), "--build-temp", str(self.folder / "objects")]
        self.group = Group(build, log) if missing and shutil.which("g++") else None

    def finish(self, seconds: float) -> str:
        """Wait, and say how it ended."""
        made: list[Path] = []
        if self.group is not None and self.group.status(seconds) == 0:
            made = sorted(self.folder.glob("normkit/*.so"))
        for path in made:
            shutil.copy2(path, self.target)
        shutil.rmtree(self.folder, ignore_errors=True)
        names = [path.name.partition(".")[0] for path in made]
        return "extension: " + ("as it was found" if self.group is None else f"built {', '.join(names) or 'nothing'}")


def first(sample: Sequence[Cell], minutes: float, dry: bool, path: Path) -> list[dict[str, Any]]:
    """Tests, and meanwhile what the timings need: the extension, and compiled code on disk."""
    end = time.monotonic() + 60 * minutes * SHARE_OF_TESTS
    extension = None if dry else Extension(path.with_suffix(".build.log"))
    pool = None if dry else warm(sample)
    rows = []
    for name, command in commands(dry).items():
        if extension is not None and name == "with the extension":
            print(extension.finish(FOR_BUILD), flush=True)
            extension = None
        log = path.with_suffix(f".{name.replace(' ', '-')}.log")
        rows.append(tested(name, command, max(FOR_TESTS, end - time.monotonic()), log))
    if extension is not None:
        print(extension.finish(FOR_BUILD), flush=True)
    if pool is not None:
        pool.shutdown(cancel_futures=True)
    return rows


def timings(run: Run, sample: Sequence[Cell], seconds: float) -> None:
    """What is timed, the most important first; models only while there is time."""
    by_name = {cell.name: cell for cell in sample}
    speed = run.results["copy"]["bytes per ms"]
    run.add("graphs", layers.graphs(run.gpu))
    run.add("calls", layers.called(run.clock, compiled=run.gpu, repeats=15))
    run.each("cells", list(by_name), lambda name: measured(by_name[name], seconds, run.clock, speed), FOR_MODELS)
    for compiled, reserve in ((False, FOR_MODEL), (True, FOR_COMPILED)):
        one = partial(models.measured, clock=run.clock, compiled=compiled, gpu=run.gpu, seconds=2 * seconds)
        run.each("models", list(models.SUBJECTS), one, reserve)


def table(results: dict[str, Any]) -> str:
    """The report, with the tests first and the verdict last."""
    rows = [f"{row['name']}: {row['counts']} in {row['seconds']} s" for row in results["tests"]]
    rows += [f"  failed: {name}" for row in results["tests"] for name in row["names"]]
    rows += [f"{kind['name']}: {kind['reason']}" for kind in results["backends"] if kind["name"] != "plain torch"]
    good = [row for row in results["graphs"] if row["failed"] is None]
    rows.append(f"CUDA graphs: {len(good)} of {len(results['graphs'])} layers")
    failed = report.failures(results)
    verdict = "\n".join(("FAILED:", *failed)) if failed else "nothing failed"
    return "\n\n".join(("\n".join(rows), report.summary(results), verdict))


@app.command()
def main(
    minutes: Annotated[float, typer.Option(help="for everything; what there is no time for is left out")] = 4.5,
    dry: Annotated[bool, typer.Option("--dry", help="on the CPU with tiny shapes: shows that the script runs")] = False,
    tests: Annotated[bool, typer.Option(help="whether to run the tests")] = True,
    seconds: Annotated[float, typer.Option(help="of each cell")] = 0.4,
    after: Annotated[str, typer.Option(hidden=True, help="what the tests have given, as JSON")] = "[]",
) -> None:
    """Run everything, write the results, print the table."""
    if not dry and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no GPU here: use --dry to try the script")
    sample = list(grid.cells(tiny=True)) if dry else [c for c in grid.cells() if c.name in grid.SAMPLE]
    if tests:
        start = time.monotonic()
        rows = first(sample, minutes, dry, output(dry))
        left = minutes - (time.monotonic() - start) / 60
        # A new process, which finds the extension.
        again = [sys.executable, "-m", "benchmarks.gpu.check", "--no-tests", "--after", json.dumps(rows)]
        again += ["--minutes", f"{max(left, 0.1):.3f}", "--seconds", str(seconds), *(["--dry"] if dry else [])]
        os.execv(sys.executable, again)
    if not dry:
        torch.set_default_device("cuda")
    run = Run(output(dry), minutes, not dry)
    run.add("tests", json.loads(after))
    if dry:
        everything(run, sample, 0.01)
    else:
        timings(run, sample, seconds)
    run.save()
    print(table(run.results), flush=True)
    if report.failures(run.results):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
