"""Builds the fast path for the PyTorch that is installed: ``python -m normkit.build``.

A wheel has the C++ kernels, which work with every PyTorch, and the sources of the fast path, which works with one
PyTorch and one Python. What this command builds is kept in the folder of `NORMKIT_CACHE`, where `find` looks for it.
`setup.py` takes the list of sources and the flags from here, so this module imports torch only when it is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from normkit import settings
from normkit.errors import StateError

FLAGS = ("-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden")
LIBRARIES = ("torch_python", "torch", "torch_cpu", "c10")
COMMAND = "python -m normkit.build"
_PACKAGE = Path(__file__).resolve().parent
_MAIN = "fastpath/module.cpp"
_INCLUDE = re.compile(rb'^#include "(.+)"', re.MULTILINE)


# What is built, and where it is kept ---------------------------------------------------------------------------


def built_for() -> str:
    """The PyTorch that is installed. Two builds from source may have one version number, but not one commit.

    >>> import torch
    >>> built_for() == f"{torch.__version__} {torch.version.git_version}"
    True
    """
    import torch

    return f"{torch.__version__} {torch.version.git_version}"


def sources() -> Path | None:
    """The folder of the C++ sources: in an installed package its own, in a checkout that of the repository."""
    places = (_PACKAGE / "csrc", _PACKAGE.parents[1] / "csrc")
    return next((place for place in places if (place / _MAIN).exists()), None)


def files(root: Path) -> dict[str, bytes]:
    """The file to compile and all that it includes of ours: name and content, in a fixed order.

    Args:
        root: the folder of the C++ sources.
    """
    found: dict[str, bytes] = {}
    waiting = [_MAIN]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = (root / name).read_bytes()
            waiting += [include.decode() for include in _INCLUDE.findall(found[name])]
    return dict(sorted(found.items()))


def place() -> Path | None:
    """Where the fast path for this PyTorch, this Python and these sources is kept once it is built.

    None if there are no sources, or no folder to keep it in.
    """
    root, cache = sources(), os.path.expanduser(settings.CACHE.value or "~/.cache/normkit")
    if root is None or cache.startswith("~"):  # this user has no home folder
        return None
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    digest = hashlib.sha256(repr((built_for(), suffix, FLAGS)).encode())
    for name, content in files(root).items():
        digest.update(repr((name, content)).encode())
    name = f"torch-{built_for().split()[0]}-{sys.implementation.cache_tag}-{digest.hexdigest()[:16]}"
    return Path(cache).absolute() / "fastpath" / name / f"_fastpath{suffix}"


# Finding it ----------------------------------------------------------------------------------------------------


def find() -> tuple[Any, str]:
    """The fast path for the PyTorch that is installed, and for which it was built; or None, and why and what to do."""
    module, reason = _checked(lambda: import_module("normkit._fastpath"))
    if module is not None:
        return module, reason
    path = place()
    if path is None:
        return None, reason
    if _is_whole(path):
        module, reason = _checked(lambda: load(path))
        if module is not None:
            return module, f"{reason}, by {COMMAND}"
    return None, f"{reason}: {COMMAND} builds it"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_whole(path: Path) -> bool:
    """Whether it is as it was built: to load a file that was cut off kills the process."""
    try:
        return path.with_suffix(".sha256").read_text() == _digest(path)
    except OSError:
        return False


def load(path: Path) -> Any:
    """The module in a file.

    Args:
        path: the file.

    Raises:
        ImportError: it cannot be loaded into this process.
    """
    spec = spec_from_file_location("normkit._fastpath", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a module of this Python")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _checked(load: Callable[[], Any]) -> tuple[Any, str]:
    wanted = built_for()
    try:
        module = load()
    except ModuleNotFoundError:
        return None, f"not built for torch {wanted} and this Python"
    except ImportError:  # symbols that this torch does not have
        return None, "built for another torch"
    if module.torch_version != wanted:
        return None, f"built for torch {module.torch_version}, not for {wanted}"
    return module, f"built for torch {wanted}"


# Building it ---------------------------------------------------------------------------------------------------


def build(say: Callable[[str], object] = print) -> Path:
    """Build the fast path, unless it has been built; several processes at once do it only once.

    Args:
        say: is called with one sentence before each step that takes time.

    Returns:
        The file in which it is kept.

    Raises:
        StateError: it cannot be built here; the text says what is missing. normkit works without it.
    """
    compiler = _requirements()
    target, root = place(), sources()
    if target is None or root is None:
        raise StateError("the fast path needs a folder to be kept in, and this user has none: set NORMKIT_CACHE to one")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / "lock", say):
            if _is_whole(target):
                return target
            say(f"Building the fast path for torch {built_for()} with {compiler[0]}; it takes about half a minute ...")
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                made = Path(folder) / target.name
                _compile(compile_command(compiler, root, made))
                _try(made)
                mark = made.with_suffix(".sha256")
                mark.write_text(_digest(made))
                for file in (made, mark):  # each appears at once, as a whole
                    os.replace(file, target.with_suffix(file.suffix))
    except OSError as error:
        raise StateError(
            f"the fast path is kept in {target.parent}, which cannot be written ({error}): "
            "set NORMKIT_CACHE to a folder that can"
        ) from error
    return target


def compile_command(compiler: Sequence[str], root: Path, target: Path) -> list[str]:
    """The command that compiles and links the fast path.

    Args:
        compiler: the compiler and its own options.
        root: the folder of the C++ sources.
        target: the file to write.
    """
    import torch

    installed = Path(torch.__file__).parent
    headers = (root, *_torch_headers(), Path(sysconfig.get_path("include")))
    link = ("-bundle", "-undefined", "dynamic_lookup") if sys.platform == "darwin" else ("-shared", "-s")
    words = [*compiler, *FLAGS, f'-DNORMKIT_TORCH="{built_for()}"', *(f"-I{folder}" for folder in headers)]
    words += [str(root / _MAIN), "-o", str(target), *link, f"-L{installed / 'lib'}"]
    return [*words, *(f"-l{name}" for name in LIBRARIES)]


def _torch_headers() -> tuple[Path, Path]:
    import torch

    include = Path(torch.__file__).parent / "include"
    return include, include / "torch" / "csrc" / "api" / "include"


def _requirements() -> list[str]:
    """The compiler; or the error that says what is missing."""
    if os.name == "nt":
        raise StateError("the fast path is written for g++ and clang++, got Windows: normkit works without it")
    if sources() is None:
        raise StateError(
            f"the fast path is built from {_PACKAGE / 'csrc'}, which is not there: install normkit again from its wheel"
        )
    compiler = (
        shlex.split(os.environ.get("CXX", ""))
        or [found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))][:1]
    )
    if not compiler or not shutil.which(compiler[0]):
        wanted = compiler[0] if compiler else "c++, g++ or clang++"
        raise StateError(
            f"the fast path needs a C++ compiler, and there is no {wanted} here: install one (apt install g++, "
            f"dnf install gcc-c++, xcode-select --install), then run {COMMAND} again. Without it results are the same"
        )
    for what, folder, name, remedy in (
        ("Python", Path(sysconfig.get_path("include")), "Python.h", "install them (apt install python3-dev)"),
        ("PyTorch", _torch_headers()[0], "torch/csrc/autograd/function.h", "install PyTorch from its wheel"),
    ):
        if not (folder / name).exists():
            raise StateError(f"the fast path needs the headers of {what}, and {name} is not in {folder}: {remedy}")
    return compiler


def _compile(command: Sequence[str]) -> None:
    _check(subprocess.run(command, capture_output=True, text=True, check=False))


def _try(path: Path) -> None:
    """Load what was built in a process of its own: a library that is wrong can end a process."""
    code = "import sys; from normkit import build; build.refuse(build.Path(sys.argv[1]))"
    _check(subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False))


def _check(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-20:])
        raise StateError(f"the fast path could not be built; normkit works without it. The last lines were:\n{last}")


def refuse(path: Path) -> None:
    """Raise an error unless the file is a fast path for the PyTorch that is installed."""
    module, reason = _checked(lambda: load(path))
    if module is None:
        raise StateError(f"the fast path that was built cannot be used: {reason}")


@contextmanager
def _locked(path: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Hold a lock on a file, which ends with the process. Without locks two processes may build the same file."""
    with path.open("a") as file:
        try:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("Another process is building it: waiting for that one ...")
                fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Build the fast path, which makes eager calls on small tensors cheaper, for the PyTorch and the "
        "Python that run this command. Results are the same without it. It needs a C++ compiler.",
    )
    parser.parse_args(arguments)
    started = time.monotonic()
    module, reason = find()
    if module is not None:
        print(f"There is nothing to do: the fast path is {reason}.")
        return 0
    try:
        path = build()
    except StateError as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return 1
    print(f"Built {path} in {time.monotonic() - started:.0f} s. The next Python process that uses normkit finds it.")
    if settings.FASTPATH.turned_off:
        print(f"It is {settings.FASTPATH.turned_off}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
