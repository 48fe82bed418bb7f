"""Builds the C++ kernels against the installed torch; everything else about the package is in pyproject.toml."""

import glob
import os
import platform
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError, CCompilerError, CompileError

sys.path.insert(0, str(Path(__file__).parent / "src"))
from normkit import build as fast

# The processor that is built for. Linux has cross-compilation: _PYTHON_HOST_PLATFORM=linux-aarch64 names another one.
# macOS builds for one processor at a time: the one that ARCHFLAGS names, or else this one.
MACHINE = platform.machine()
if sys.platform == "linux":
    MACHINE = sysconfig.get_platform().removeprefix("linux-")
named = os.environ.get("ARCHFLAGS", "").split()[1::2] if sys.platform == "darwin" else []
MACHINE = named[0] if len(named) == 1 else MACHINE
IS_CROSS = sys.platform == "linux" and platform.machine() != MACHINE

ISAS = {"baseline": []}  # on aarch64 that is NEON
if MACHINE.lower() in ("x86_64", "amd64"):
    ISAS["baseline"] = ["-O2"]  # for processors of before 2013; it takes two thirds of the time to compile
    ISAS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    ISAS["avx512"] = [*ISAS["avx2"], "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
    if sys.platform == "linux":
        ISAS["avx512"].append("-mprefer-vector-width=512")
    ISAS["avx512_bf16"] = [*ISAS["avx512"], "-mavx512bf16"]

# clang joins a product and a sum of two statements only where contraction is asked for; g++ does it by itself.
FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fopenmp-simd", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-g0"]
if sys.platform == "linux":
    FLAGS.append("-fno-ipa-cp-clone")  # copies of functions for some of their arguments, which take longer to compile
    FLAGS.append("-fno-loop-unroll-and-jam")  # it joins steps of a loop around a vector loop, which is then scalar
LINK = ["-s"] if sys.platform == "linux" else []
if sys.platform == "darwin":
    FLAGS += ["-arch", MACHINE]  # instead of all those that a universal Python was built for
    LINK += ["-arch", MACHINE]


class BuildKernels(build_ext):
    """Compiles isa.cpp once for each instruction set, which setuptools' own command cannot; and the fast path."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or 2

    def run(self):
        self.failed = {}
        super().run()
        for name in self.failed:  # with --inplace, this is the file beside the sources
            Path(self.get_ext_fullpath(name)).unlink(missing_ok=True)
        if self.failed:
            print(self.warning(), file=sys.stderr)

    def warning(self):
        """What is printed last, so that it is seen, if a part could not be built."""
        lines = [f"{name} was NOT built: {error}" for name, error in self.failed.items()]
        lines += ["normkit works without it, but slower; normkit.show_backends() says what is in use."]
        lines += ["A file from an earlier build was removed, so that no code of older sources runs."]
        bar = "=" * 100
        return "\n".join([bar, *(f"WARNING: {line}" for line in lines), bar])

    def build_extension(self, ext):
        """Build one of the two parts; where that fails, a file from an earlier build is removed."""
        try:
            self.build_part(ext)
        except (BaseError, CCompilerError) as error:
            self.failed[ext.name] = error
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            raise

    def build_part(self, ext):
        from torch.utils.cpp_extension import include_paths, library_paths

        compiler, temp = self.compiler, self.build_temp
        if compiler.compiler_type != "unix":
            raise CompileError(f"the kernels are written for g++ and clang++, got {compiler.compiler_type}")
        includes = ["csrc", *include_paths(), sysconfig.get_path("include")]

        def compile_one(job):
            source, folder, extra = job
            return compiler.compile([source], os.path.join(temp, folder), include_dirs=includes, extra_postargs=extra)

        link, folders, first = [*LINK], library_paths(), []
        if ext is fastpath:
            libraries = fast.LIBRARIES
            jobs = [("csrc/fastpath/module.cpp", "fastpath", [*fast.FLAGS, f'-DNORMKIT_TORCH="{fast.built_for()}"'])]
        else:
            jobs, libraries = self.kernel_jobs(), ["torch_cpu"]
            if sys.platform == "linux":
                link.append("-Wl,--version-script=csrc/exports.map")
            if IS_CROSS:
                folders, first = [self.stub("torch_cpu", compile_one)], ["-Wl,--no-as-needed"]
        with ThreadPoolExecutor(2) as workers:
            objects = [path for paths in workers.map(compile_one, jobs) for path in paths]
        compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            libraries=list(libraries),
            library_dirs=folders,
            extra_preargs=first,
            extra_postargs=link,
            target_lang="c++",
        )

    def stub(self, name, compile_one):
        """The folder of an empty library with torch's name, for another processor than that of the installed torch.

        The names in torch's library are looked up where normkit's is loaded, and not where it is linked.
        """
        folder = Path(self.build_temp) / "stub"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "empty.cpp").write_text("")
        self.compiler.link_shared_object(
            compile_one((str(folder / "empty.cpp"), "stub", ["-fPIC"])),
            str(folder / f"lib{name}.so"),
            extra_postargs=[f"-Wl,-soname,lib{name}.so"],
            target_lang="c++",
        )
        return str(folder)

    @staticmethod
    def kernel_jobs():
        jobs = [("csrc/isa.cpp", isa, [*FLAGS, *flags, f"-DNORMKIT_ISA={isa}"]) for isa, flags in ISAS.items()]
        jobs.append(
            (
                "csrc/ops.cpp",
                "ops",
                [*FLAGS, "-Wno-unused-parameter", "-DTORCH_TARGET_VERSION=0x020a000000000000"],
            )
        )
        if sys.platform == "linux":
            jobs.append(("csrc/old_glibc.cpp", "ops", FLAGS))
        return jobs


class BuildPython(build_py):
    """Adds the sources of the fast path, which `python -m normkit.build` builds for the torch of the user."""

    def run(self):
        super().run()
        if not self.editable_mode:  # there the sources are found in the repository
            for name, content in fast.files(Path("csrc")).items():
                target = Path(self.build_lib) / "normkit" / "csrc" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)


class Wheel(bdist_wheel):
    """The kernels hold no Python, so without the fast path one wheel serves every CPython from 3.11 on."""

    def get_tag(self):
        python, abi, where = super().get_tag()
        return (python, abi, where) if fastpath in self.distribution.ext_modules else ("cp311", "abi3", where)


SOURCES = ["csrc/isa.cpp", "csrc/ops.cpp", "csrc/old_glibc.cpp"]
# optional: without such a compiler (with MSVC, too) normkit installs all the same and runs on plain torch, saying so.
kernels = Extension("normkit._native", sources=SOURCES, py_limited_api=True, optional=True)
kernels.depends = sorted(glob.glob("csrc/**/*.*", recursive=True))
# The fast path belongs to one torch and one CPython. NORMKIT_FASTPATH=0 leaves it out, for a wheel for all of them.
fastpath = Extension("normkit._fastpath", sources=["csrc/fastpath/module.cpp"], depends=kernels.depends, optional=True)
extensions = [kernels] if os.environ.get("NORMKIT_FASTPATH") == "0" else [kernels, fastpath]
setup(ext_modules=extensions, cmdclass={"build_ext": BuildKernels, "build_py": BuildPython, "bdist_wheel": Wheel})
