"""Which dtypes a call computes in."""

from __future__ import annotations

import torch
from torch import Tensor


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of moments and of weight arithmetic: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the formula: float64 on a CPU, but not in a graph that is to leave for other runtimes."""
    wide = x.device.type == "cpu" and not torch.onnx.is_in_onnx_export()
    return torch.promote_types(x.dtype, torch.float64 if wide else torch.float32)
