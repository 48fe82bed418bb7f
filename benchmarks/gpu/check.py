"""Everything that one GPU can check in a few minutes: benchmarks/gpu_check.sh calls it after the set-up.

It runs the tests that need a GPU, and meanwhile builds the extension and compiles for the timings; then graphs, calls
of layers, a dozen cells and whole models, as long as there is time; and prints one table. The exit status is 1 if
anything of normkit failed or a test did. What could not be compared, because a package is missing or torch's own side
fails, is a note in the table; so are tests that there was no time for, if some have passed and none has failed.
"""

from __future__ import annotations

import ast
import contextlib
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
from collections import Counter
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
SHARE_OF_TESTS, SHARE_OF_FIRST = 0.5, 0.6
"""Of the whole time; and of that, what the first of two groups of tests has."""
GRACE = 10.0
"""Seconds that pytest has to write its report after an interrupt."""
TELLING = ("test_on_gpu.py", "test_torch_samples.py", "test_triton.py")
"""What says most about the GPU, in this order; the other files of a group follow."""
FOR_MODELS, FOR_MODEL, FOR_COMPILED = 30.0, 10.0, 45.0
"""Seconds that the cells leave for the models, and that one model needs, eager or compiled."""
FOR_TESTS, FOR_BUILD = 30.0, 45.0
"""Seconds that the last tests have at least, and to wait for the extension; without it, Python's way is measured."""
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--verbosity=1", "-rfE", "--tb=short"]
"""Writes a line for each test; `-v` would only undo the `-q` of pyproject.toml."""
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


def needs_gpu(source: str) -> bool:
    """Whether a file of tests has some for a GPU.

    They have the mark `gpu`, or the `marks` that tests/kernels/interpreted.py gives tests that take a GPU if there is
    one.
    """
    if "pytestmark" not in source and "mark.gpu" not in source:
        return False
    tree = ast.parse(source)
    names = [
        name.id
        for statement in tree.body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "pytestmark"
        for name in ast.walk(statement.value)
        if isinstance(name, ast.Name)
    ]
    attributes = (ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return "marks" in names or any(attribute.endswith("mark.gpu") for attribute in attributes)


def gpu_tests() -> dict[str, list[str]]:
    """The files with tests for a GPU: those that the compiled half of normkit has no part in, and the others."""
    found: dict[str, list[str]] = {"without the extension": [], "with the extension": []}
    rank = {name: at for at, name in enumerate(TELLING)}
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    for path in sorted(paths, key=lambda path: rank.get(path.name, len(rank))):
        if needs_gpu(path.read_text("utf-8")):
            alone = path.name.startswith("test_triton") or path.parent.name == "functional"
            kind = "without the extension" if alone else "with the extension"
            found[kind].append(str(path.relative_to(ROOT)))
    return {kind: paths for kind, paths in found.items() if paths}


def commands(dry: bool) -> dict[str, list[str]]:
    """How tests are run: in several processes if pytest-xdist is there, in their order. A dry run takes a quick one."""
    if dry:
        return {"dry": [*PYTEST, "tests/kernels/test_triton_schedules.py", "-k", "say_what_they_do"]}
    mine = [*PYTEST, "-m", "gpu", "--continue-on-collection-errors"]
    if importlib.util.find_spec("xdist"):
        mine += ["-n", str(PROCESSES), "--dist", "load", "--maxschedchunk", "4"]
    return {kind: [*mine, *paths] for kind, paths in gpu_tests().items()}


def outcomes(text: str) -> dict[str, str]:
    """What has become of each test so far, from the lines of `PYTEST`, and from its summary.

    >>> outcomes("a.py::b PASSED [ 50%]\\n[gw1] [100%] FAILED a.py::c \\nFAILED a.py::c - x\\nERROR d.py - y\\n")
    {'a.py::b': 'passed', 'a.py::c': 'failed', 'd.py': 'error'}
    """
    words = "(PASSED|FAILED|SKIPPED|ERROR)"
    alone = re.findall(rf"^(\S+\.py::.*?) {words}(?: .*)?$", text, re.M)
    by_worker = re.findall(rf"^\[gw\d+\] \[ *\d+%\] {words} (.*?) *$", text, re.M)
    summary = re.findall(r"^(FAILED|ERROR) (\S+\.py.*?)(?: - .*)?$", text, re.M)
    ends = [*alone, *((name, what) for what, name in (*by_worker, *summary))]
    return {name: what.lower() for name, what in ends}


class Group:
    """A command in a group of processes of its own, which ends as a whole, with its output in a file."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        paths = os.pathsep.join((str(ROOT / "src"), *filter(None, sys.path)))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )

    def status(self, seconds: float) -> int | None:
        """Its status, or None if it had to be ended: by an interrupt first, so that it can say what it has done."""
        try:
            return self.process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
            with contextlib.suppress(ProcessLookupError):  # none of the group is left
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return None


def tested(name: str, command: Sequence[str], seconds: float, log: Path) -> dict[str, Any]:
    """Run tests; the row has the counts, the names of those that failed, and a note if time ran out."""
    start = time.monotonic()
    status = Group(command, log).status(seconds)
    text = log.read_text()
    row: dict[str, Any] = {"name": f"tests {name}", "failed": None, "seconds": round(time.monotonic() - start, 1)}
    ends = outcomes(text)
    row["counts"] = dict(Counter(ends.values()))
    row["names"] = [name for name, end in ends.items() if end in ("failed", "error")]
    row["note"] = f"not over after {seconds:.0f} s, so the others have not run" if status is None else None
    if row["names"] or status not in (None, 0, NO_TESTS):
        how = f"status {status}" if row["note"] is None else row["note"]
        row["failed"] = f"{how}, {row['counts'] or text[-300:]}"
    elif status != NO_TESTS and not row["counts"].get("passed"):
        row["failed"] = f"none has passed: {row['counts']}"
    return row


class Extension:
    """The compiled half of normkit, built for this torch while tests run, and put in its place when it is whole.

    The kernels fit every torch, so they are built only if they are missing. The fast path, which takes a tenth of their
    time, is always built: one that is there may be of another torch, or of other sources.
    """

    def __init__(self, log: Path, target: Path = ROOT / "src" / "normkit") -> None:
        self.target, self.folder = target, Path(tempfile.mkdtemp())
        names = [] if list(target.glob("_native*.so")) else ["normkit._native"]
        build = [sys.executable, "-c", BUILD, ",".join((*names, "normkit._fastpath")), "-q", "build_ext"]
        build += ["--build-lib", str(self.folder), "--build-temp", str(self.folder / "objects")]
        self.group = Group(build, log) if shutil.which("g++") else None

    def finish(self, seconds: float) -> str:
        """Wait, and say how it ended."""
        made: list[Path] = []
        if self.group is not None and self.group.status(seconds) == 0:
            made = sorted(self.folder.glob("normkit/*.so"))
        for path in made:  # never written over: another process may have loaded it
            shutil.copy2(path, self.target / f"{path.name}.new")
            (self.target / f"{path.name}.new").replace(self.target / path.name)
        shutil.rmtree(self.folder, ignore_errors=True)
        names = [path.name.partition(".")[0] for path in made]
        return "extension: " + (
            "as it is, without g++" if self.group is None else f"built {', '.join(names) or 'nothing'}"
        )


def first(sample: Sequence[Cell], minutes: float, dry: bool, path: Path) -> list[dict[str, Any]]:
    """Tests, and meanwhile what the timings need: the extension, and compiled code on disk."""
    seconds = 60 * minutes * SHARE_OF_TESTS
    end = time.monotonic() + seconds
    extension = None if dry else Extension(path.with_suffix(".build.log"))
    pool = None if dry else warm(sample)
    rows = []
    groups = commands(dry)
    for at, (name, command) in enumerate(groups.items(), 1):
        if extension is not None and name == "with the extension":
            print(extension.finish(FOR_BUILD), flush=True)
            extension = None
        log = path.with_suffix(f".{name.replace(' ', '-')}.log")
        left = end - time.monotonic() if at == len(groups) else seconds * SHARE_OF_FIRST
        rows.append(tested(name, command, max(FOR_TESTS, left), log))
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
    run.add("calls", layers.called(run.clock, run.gpu, repeats=15))
    run.each("cells", list(by_name), lambda name: measured(by_name[name], seconds, run.clock, speed), FOR_MODELS)
    for compiled, reserve in ((False, FOR_MODEL), (True, FOR_COMPILED)):
        one = partial(models.measured, clock=run.clock, compiled=compiled, gpu=run.gpu, seconds=2 * seconds)
        run.each("models", list(models.SUBJECTS), one, reserve)


def table(results: dict[str, Any]) -> str:
    """The report, with the tests first and the verdict last."""
    rows = [f"{row['name']}: {row['counts']} in {row['seconds']} s" for row in results["tests"]]
    rows += [f"  {row['name']}: {row['note']}" for row in results["tests"] if row["note"]]
    rows += [f"  failed: {name}" for row in results["tests"] for name in row["names"]]
    rows += [f"{kind['name']}: {kind['reason']}" for kind in results["backends"] if kind["name"] != "plain torch"]
    good = [row for row in results["graphs"] if row["failed"] is None]
    rows.append(f"CUDA graphs: {len(good)} of {len(results['graphs'])} layers")
    cpp = [row for row in results["calls"] if row["C++"]]
    rows.append(f"C++ carries out {len(cpp)} of {len(results['calls'])} calls: {results['C++']}")
    failed = report.failures(results)
    verdict = "\n".join(("FAILED:", *failed)) if failed else "nothing failed"
    return "\n\n".join(("\n".join(rows), report.summary(results), verdict))


@app.command()
def main(
    minutes: Annotated[float, typer.Option(help="for everything; what there is no time for is left out")] = 4.5,
    dry: Annotated[bool, typer.Option("--dry", help="on the CPU with tiny shapes: shows that the script runs")] = False,
    tests: Annotated[bool, typer.Option(help="whether to run the tests")] = True,
    seconds: Annotated[float, typer.Option(help="of each cell")] = 0.4,
    save: Annotated[Path | None, typer.Option(help="folder of the results, by default benchmarks/results")] = None,
    after: Annotated[str, typer.Option(hidden=True, help="what the tests have given, as JSON")] = "[]",
) -> None:
    """Run everything, write the results, print the table."""
    if not dry and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no GPU here: use --dry to try the script")
    # A dry run measures nothing, so it leaves no results there.
    path = (save or Path(tempfile.mkdtemp() if dry else RESULTS)) / "gpu-check.json"
    sample = list(grid.cells(tiny=True)) if dry else [c for c in grid.cells() if c.name in grid.SAMPLE]
    if tests:
        start = time.monotonic()
        rows = first(sample, minutes, dry, path)
        left = minutes - (time.monotonic() - start) / 60
        # A new process, which finds the extension.
        again = [
            sys.executable,
            "-m",
            "benchmarks.gpu.check",
            "--no-tests",
            "--after",
            json.dumps(rows),
            "--save",
            str(path.parent),
        ]
        again += ["--minutes", f"{max(left, 0.1):.3f}", "--seconds", str(seconds), *(["--dry"] if dry else [])]
        os.execv(sys.executable, again)
    run = Run(path, minutes, not dry)
    run.add("tests", json.loads(after))
    if dry:
        everything(run, sample, 0.01)
    else:
        timings(run, sample, seconds)
    run.results["C++"] = layers.cpp_state(run.gpu)[1]
    run.save()
    print(table(run.results), flush=True)
    if report.failures(run.results):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
