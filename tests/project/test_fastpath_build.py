"""The fast path of a wheel: each torch, Python and source has its own, built once, on request, or refused in words."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from normkit import build
from normkit.errors import StateError

CSRC = Path(__file__).parents[2] / "csrc"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
FASTPATH = Path(build.__file__).parent / f"_fastpath{SUFFIX}"
IN_ANOTHER_PROCESS = build._try


def test_the_sources_of_the_fast_path_are_found():
    found = build.files(CSRC)
    assert {path.relative_to(CSRC).as_posix() for path in (CSRC / "fastpath").rglob("*.*")} <= set(found)
    assert "kernel.h" in found
    assert not {name for name in found if name.startswith(("walk", "block", "vector"))}


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
