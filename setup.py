"""Builds the C++ kernels against the installed torch; everything else about the package is in pyproject.toml."""

import glob
import os
import platform
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# macOS builds for one processor at a time: the one that ARCHFLAGS names, or else this one.
named = os.environ.get("ARCHFLAGS", "").split()[1::2] if sys.platform == "darwin" else []
MACHINE = named[0] if len(named) == 1 else platform.machine()

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
FASTPATH_FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden"]
FLAGS += ["-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-g0"]
if sys.platform == "linux":
    FLAGS.append("-fno-ipa-cp-clone")  # copies of functions for some of their arguments, which take longer to compile
LINK = ["-s"] if sys.platform == "linux" else []
if sys.platform == "darwin":
    FLAGS += ["-arch", MACHINE]  # instead of all those that a universal Python was built for
    LINK += ["-arch", MACHINE]


class BuildKernels(build_ext):
    """Compiles isa.cpp once for each instruction set, which setuptools' own command cannot; and the fast path."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or 2

    def build_extension(self, ext):
        import torch
        from torch.utils.cpp_extension import include_paths, library_paths

        compiler, temp = self.compiler, self.build_temp
        if compiler.compiler_type != "unix":
            raise CompileError(f"the kernels are written for g++ and clang++, got {compiler.compiler_type}")
        includes = ["csrc", *include_paths(), sysconfig.get_path("include")]

        def compile_one(job):
            source, folder, extra = job
            return compiler.compile([source], os.path.join(temp, folder), include_dirs=includes, extra_postargs=extra)

        if ext is fastpath:
            version = f"{torch.__version__} {torch.version.git_version}"
            jobs = [("csrc/fastpath/module.cpp", "fastpath", [*FASTPATH_FLAGS, f'-DNORMKIT_TORCH="{version}"'])]
            libraries = ["torch_python", "torch", "torch_cpu", "c10"]
        else:
            jobs, libraries = self.kernel_jobs(), ["torch_cpu"]
        with ThreadPoolExecutor(2) as workers:
            objects = [path for paths in workers.map(compile_one, jobs) for path in paths]
        compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            libraries=libraries,
            library_dirs=library_paths(),
            extra_postargs=LINK,
            target_lang="c++",
        )

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
        return jobs


class Wheel(bdist_wheel):
    """The kernels hold no Python, so without the fast path one wheel serves every CPython from 3.11 on."""

    def get_tag(self):
        python, abi, where = super().get_tag()
        return (python, abi, where) if fastpath in self.distribution.ext_modules else ("cp311", "abi3", where)


# optional: without such a compiler (with MSVC, too) normkit installs all the same and runs on plain torch, saying so.
kernels = Extension("normkit._native", sources=["csrc/isa.cpp", "csrc/ops.cpp"], py_limited_api=True, optional=True)
kernels.depends = sorted(glob.glob("csrc/**/*.*", recursive=True))
# The fast path belongs to one torch and one CPython. NORMKIT_FASTPATH=0 leaves it out, for a wheel for all of them.
fastpath = Extension("normkit._fastpath", sources=["csrc/fastpath/module.cpp"], depends=kernels.depends, optional=True)
extensions = [kernels] if os.environ.get("NORMKIT_FASTPATH") == "0" else [kernels, fastpath]
setup(ext_modules=extensions, cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel})
