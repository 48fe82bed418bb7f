"""Puts together the package for Hugging Face's ``kernels`` from normkit's own files: ``python -m hub.build``.

The package needs a copy of the code, because several versions of it can be loaded in one process: all imports are
relative, and its operators are registered under a name that is unique for each build. Nothing in it is written twice:
from the functions that it offers (`OFFERED`), imports are followed through ``src/normkit``, and the files that they
reach are copied with their imports rewritten.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "normkit"
HERE = ROOT / "hub"

NAME, VERSION = "normkit", 0
"""Of the package. By the convention of the hub, version 0 promises no stable interface."""

OFFERED = {
    "normkit.functional.general": ("normalize",),
    "normkit.functional.group": ("group_norm",),
    "normkit.functional.layer": ("layer_norm", "layer_norm2d"),
    "normkit.functional.modulated.gated": ("gated_rms_norm",),
    "normkit.functional.rms": ("rms_norm",),
}
"""The functions of the package, and where they are."""

BACKENDS = ("cpu", "cuda", "rocm", "xpu")
"""Each has a variant in Python and Triton alone. Without compiled kernels a CPU computes the formula in plain torch."""

STABLE = "torch-stable-abi210"
"""The variant for CPUs with compiled kernels: they need the stable ABI of torch 2.10, and no Python."""

TEXTS = {
    'import_module("normkit._fastpath")': 'import_module("..._fastpath", __name__)',
    "it was installed from source without a C++ compiler": "this variant of the package has none",
    "install g++ and reinstall normkit, or install its wheel": (
        "take a variant with compiled kernels, or pip install normkit"
    ),
    "; normkit.show_backends() tells more.": ".",
}
"""What is different in the package."""

IMPORT = re.compile(r"^(\s*)from normkit((?:\.\w+)*) import", re.MULTILINE)


def modules() -> dict[str, Path]:
    """The modules of normkit that the offered functions import, directly or not, also inside functions."""
    found: dict[str, Path] = {}
    open_ = list(OFFERED)
    while open_:
        name = open_.pop()
        path = _path(name)
        if path is None or name in found:
            continue
        found[name] = path
        open_.extend(name.rpartition(".")[:1])  # its package, which is imported first
        if name not in ("normkit", "normkit.functional"):  # whose own files are written here
            open_.extend(_imported(path))
    return found


def _path(name: str) -> Path | None:
    place = SOURCE.joinpath(*name.split(".")[1:])
    candidates = (place / "__init__.py", place.with_suffix(".py"))
    return next((path for path in candidates if name.startswith("normkit") and path.is_file()), None)


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "normkit":
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def relative(text: str, name: str, is_package: bool) -> str:
    """The code of a module with imports of normkit made relative.

    >>> relative("from normkit.errors import ShapeError", "normkit.functional.rms", False)
    'from ..errors import ShapeError'
    """
    depth = name.count(".") + is_package
    return IMPORT.sub(lambda found: f"{found[1]}from {'.' * depth}{found[2][1:]} import", text)


def renamed(text: str, operators: str) -> str:
    """The code of a module with operators in another namespace, and the fast path looked for in the same package."""
    text = text.replace('Library("normkit"', f'Library("{operators}"').replace("normkit::", f"{operators}::")
    text = re.sub(r"torch\.ops\.normkit(_native)?\b", lambda found: f"torch.ops.{operators}{found[1] or ''}", text)
    for old, new in TEXTS.items():
        text = text.replace(old, new)
    return text


def files() -> dict[str, str]:
    """The Python files of the package by their place in it, with operators still in normkit's namespace."""
    made = {}
    for name, path in sorted(modules().items()):
        place = str(path.relative_to(SOURCE))
        if name not in ("normkit", "normkit.functional"):
            made[place] = relative(path.read_text(encoding="utf-8"), name, path.name == "__init__.py")
    functions = sorted(each for names in OFFERED.values() for each in names)
    imports = [
        f"from .{name.removeprefix('normkit.functional.')} import {', '.join(OFFERED[name])}"
        for name in sorted(OFFERED)
    ]
    listed = f"__all__ = {json.dumps(functions)}\n"
    made["functional/__init__.py"] = '"""Normalizations as functions."""\n\n' + "\n".join(imports) + f"\n\n{listed}"
    layers = (HERE / "layers.py").read_text(encoding="utf-8")
    made["layers/__init__.py"] = relative(layers, "normkit.layers", True)
    public = json.dumps(["layers", *functions])
    made["__init__.py"] = (
        '"""normkit: normalizations on CPUs and GPUs, forward and backward, in every memory layout."""\n\n'
        f"from . import layers\nfrom .functional import {', '.join(functions)}\n\n__all__ = {public}\n"
    )
    return made


def build(to: Path, native: bool = False) -> list[Path]:
    """Write the package, all variants, and return their folders.

    Args:
        to: the folder of the package; what is there is replaced.
        native: whether to compile the variant with kernels for this machine's kind of CPU, which takes minutes.
    """
    made = files()
    state = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:7]
    shutil.rmtree(to, ignore_errors=True)
    variants = [_variant(to, f"torch-{backend}", backend, made, state) for backend in BACKENDS]
    if native:
        system = f"{platform.machine()}-{platform.system().lower()}"
        # The compiled kernels replace only the formula on CPUs, so the Python code is the same.
        variants.append(_variant(to, f"{STABLE}-cpu-{system}", "cpu", made, state, suffix="_stable"))
    for each in ("CARD.md", "benchmarks"):
        _copy(HERE / each, to / ("README.md" if each == "CARD.md" else each))
    return variants


def _copy(here: Path, there: Path) -> None:
    if here.is_dir():
        shutil.copytree(here, there, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(here, there)


def _variant(to: Path, name: str, backend: str, made: dict[str, str], state: str, suffix: str = "") -> Path:
    folder = to / "build" / name
    identity = f"_{NAME}_{backend}{suffix}_{state}"
    for place, text in made.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(renamed(text, identity), encoding="utf-8")
    if suffix:
        compile_kernels(folder / "_native.abi3.so", identity)
    old = folder / NAME  # where older versions of `kernels` look
    old.mkdir()
    old.joinpath("__init__.py").write_text(COMPATIBILITY, encoding="utf-8")
    metadata: dict[str, Any] = {"name": NAME, "id": identity, "version": VERSION, "license": "apache-2.0"}
    metadata |= {"python-depends": [], "backend": {"type": backend}, "digest": digest(folder)}
    folder.joinpath("metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    return folder


COMPATIBILITY = '''"""The package, for versions of `kernels` that look for it in a folder of its name."""

import importlib.util
import sys
from pathlib import Path

_place = Path(__file__).parent.parent / "__init__.py"
_name = f"{__name__}_package"
_spec = importlib.util.spec_from_file_location(_name, _place)
_module = importlib.util.module_from_spec(_spec)
sys.modules[_name] = _module
_spec.loader.exec_module(_module)
globals().update({name: getattr(_module, name) for name in _module.__all__})
__all__ = _module.__all__
'''


def digest(folder: Path) -> dict[str, Any]:
    """The hashes of all files of a variant, as `kernels` checks them."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "metadata.json" and "__pycache__" not in path.parts:
            value = hashlib.sha256(path.read_bytes()).digest()
            hashes[path.relative_to(folder).as_posix()] = base64.b64encode(value).decode()
    return {"algorithm": "sha256", "files": hashes}


def compile_kernels(to: Path, operators: str) -> None:
    """Compile csrc/ with its operators registered as ``operators + "_native"``."""
    setup = [
        sys.executable,
        "setup.py",
        "build_ext",
        "--build-lib",
        "build/hub-native",
        "--build-temp",
        "build/hub-temp",
    ]
    define = f"-Dnormkit_native={operators}_native"
    flags = {"NORMKIT_FASTPATH": "0", "CPPFLAGS": f"{os.environ.get('CPPFLAGS', '')} {define}"}
    subprocess.run(setup, cwd=ROOT, check=True, env={**os.environ, **flags})
    shutil.move(next((ROOT / "build" / "hub-native" / "normkit").glob("_native*")), to)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m hub.build", description=__doc__.partition("\n")[0])
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "hub" / NAME, help="the folder to write")
    parser.add_argument("--native", action="store_true", help="also compile the kernels for this machine's CPUs")
    arguments = parser.parse_args()
    for variant in build(arguments.to, arguments.native):
        print(variant)


if __name__ == "__main__":
    main()
