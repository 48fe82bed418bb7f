"""`kernelize`: gives norms of other libraries normkit's forward, by the hook of Hugging Face's ``kernels``."""

from normkit.tools.kernelize.report import Kernelized, KernelizeReport
from normkit.tools.kernelize.run import kernelize

__all__ = ["KernelizeReport", "Kernelized", "kernelize"]
