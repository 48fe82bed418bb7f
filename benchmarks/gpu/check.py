"""Everything that one GPU can check in a few minutes: benchmarks/gpu_check.sh calls it after the set-up.

It runs the tests that need a GPU, and meanwhile builds the extension and compiles for the timings; then graphs, calls
of layers, a dozen cells and whole models, as long as there is time; and prints one table. The exit status is 1 if
anything of normkit failed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
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
TESTS = ("tests/kernels", "tests/functional")
PROCESSES = 8
SHARE_OF_TESTS = 0.5
"""Of the whole time."""
FOR_MODELS, FOR_MODEL, FOR_COMPILED = 30.0, 10.0, 45.0
"""Seconds that the cells leave for the models, and that one model needs, eager or compiled."""
FOR_BUILD = 45.0
"""Seconds to wait for the extension after the tests; without it, Python's way is measured."""

app = typer.Typer(pretty_exceptions_enable=False)


def output(dry: bool) -> Path:
    """Where the results go: $OUT if it is set, else benchmarks/results; those of a dry run are no results."""
    return Path(os.environ.get("OUT") or (tempfile.mkdtemp() if dry else RESULTS)) / "gpu-check.json"


def command(dry: bool) -> list[str]:
    """How the tests are run: in several processes if pytest-xdist is there; a dry run takes a quick one."""
    mine = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rfE", "--tb=short"]
    if dry:
        return [*mine, "tests/kernels/test_triton_schedules.py", "-k", "say_what_they_do"]
    parallel = ["-n", str(PROCESSES), "--dist", "worksteal"] if importlib.util.find_spec("xdist") else []
    return [*mine, "-m", "gpu", "--continue-on-collection-errors", *parallel, *TESTS]


def counts(text: str) -> dict[str, int]:
    """What pytest's last line counts.

    >>> counts("1 failed, 12 passed, 2 skipped in 3.21s")
    {'failed': 1, 'passed': 12, 'skipped': 2}
    """
    return {what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|skipped|error)", text)}


def tested(seconds: float, dry: bool, log: Path) -> dict[str, Any]:
    """Run the tests; the row has the counts, and the names of those that failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), *sys.path))}
    row: dict[str, Any] = {"name": "pytest -m gpu", "failed": None}
    start = time.monotonic()
    done = subprocess.Popen(
        command(dry), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        text, _ = done.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        done.kill()
        text, _ = done.communicate()
        row["failed"] = f"not over after {seconds:.0f} s"
    row["seconds"] = round(time.monotonic() - start, 1)
    row["counts"] = counts(text[-500:])
    row["names"] = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.M)
    if row["failed"] is None and (done.returncode or not row["counts"].get("passed")):
        row["failed"] = f"status {done.returncode}, {row['counts'] or text[-300:]}"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text)
    return row


class Extension:
    """The compiled half of normkit, built for this torch while tests run, and put in its place when it is whole."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        there = [*(ROOT / "src" / "normkit").glob("_fastpath*.so")]
        build = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", self.folder, "--build-temp", self.folder]
        self.process = None
        if not there and shutil.which("g++"):
            self.process = subprocess.Popen(build, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def finish(self, seconds: float) -> str:
        """Wait, and say how it ended."""
        status: int | str = "as it was found"
        if self.process is not None:
            try:
                status = self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                status = "not over in time"
            if status == 0:
                for made in self.folder.glob("normkit/*.so"):
                    shutil.copy2(made, ROOT / "src" / "normkit")
        shutil.rmtree(self.folder, ignore_errors=True)
        return f"extension: {status}"


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
) -> None:
    """Run everything, write the results, print the table."""
    if not dry and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no GPU here: use --dry to try the script")
    if not dry:
        torch.set_default_device("cuda")
    sample = list(grid.cells(tiny=True)) if dry else [c for c in grid.cells() if c.name in grid.SAMPLE]
    end = time.monotonic() + 60 * minutes
    extension = None if dry else Extension()
    pool = None if dry else warm(sample)
    path = output(dry)
    row = tested(60 * minutes * SHARE_OF_TESTS, dry, path.with_suffix(".tests.log")) if tests else None
    if pool is not None:
        pool.shutdown(cancel_futures=True)
    if extension is not None:
        print(extension.finish(FOR_BUILD), flush=True)
    run = Run(path, (end - time.monotonic()) / 60, not dry)
    if row is not None:
        run.add("tests", [row])
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
