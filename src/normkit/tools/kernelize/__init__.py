"""`kernelize`: lets norms of other libraries compute with normkit, by the hook of Hugging Face's ``kernels`` package."""

from normkit.tools.kernelize.report import Kernelized, KernelizeReport
from normkit.tools.kernelize.run import kernelize

__all__ = ["KernelizeReport", "Kernelized", "kernelize"]
