"""Builds the C++ kernels against the installed torch; everything else about the package is in pyproject.toml."""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ISAS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    ISAS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    ISAS["avx512"] = [*ISAS["avx2"], "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
    if sys.platform == "linux":
        ISAS["avx512"].append("-mprefer-vector-width=512")

FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]


class BuildKernels(build_ext):
    """Compiles isa.cpp once for each instruction set, which setuptools' own command cannot."""

    def build_extension(self, ext):
        from torch.utils.cpp_extension import include_paths, library_paths

        compiler, temp = self.compiler, self.build_temp
        compiler.set_executable("compiler_so", os.environ.get("CXX", "c++"))
        includes = ["csrc", *include_paths()]

        def compile_one(job):
            source, folder, extra = job
            return compiler.compile([source], os.path.join(temp, folder), include_dirs=includes, extra_postargs=extra)

        jobs = [("csrc/isa.cpp", isa, [*FLAGS, *flags, f"-DNORMKIT_ISA={isa}"]) for isa, flags in ISAS.items()]
        jobs.append(
            (
                "csrc/ops.cpp",
                "ops",
                [*FLAGS, "-Wno-unused-parameter", "-DTORCH_TARGET_VERSION=0x020a000000000000"],
            )
        )
        with ThreadPoolExecutor(2) as workers:
            objects = [path for paths in workers.map(compile_one, jobs) for path in paths]
        compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            libraries=["torch_cpu"],
            library_dirs=library_paths(),
            extra_postargs=["-s"] if sys.platform == "linux" else [],
            target_lang="c++",
        )


class Abi3Wheel(bdist_wheel):
    """The kernels hold no Python, so one wheel serves every CPython from 3.11 on."""

    def get_tag(self):
        _, _, where = super().get_tag()
        return "cp311", "abi3", where


# optional: without a compiler normkit installs all the same and runs on plain torch, saying so.
kernels = Extension("normkit._native", sources=["csrc/isa.cpp", "csrc/ops.cpp"], py_limited_api=True, optional=True)
kernels.depends = [os.path.join("csrc", name) for name in sorted(os.listdir("csrc"))]
setup(ext_modules=[kernels], cmdclass={"build_ext": BuildKernels, "bdist_wheel": Abi3Wheel})
