"""What is exported to ONNX or traced by TorchScript: torch's own functions in place of normkit's, to run without it."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional as F

from normkit.kernels import reference
from normkit.pattern import parse

_GROUPS = re.compile(r"b \(g=(\d+) \[c\]\) \[\.\.\.\]")
_LAST = re.compile(r"\.\.\. \[(c\d*(?: c\d*)*)\]")


def is_exported() -> bool:
    """Whether this call is being exported to ONNX, or traced by `torch.jit.trace`."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
    return torch._C._get_tracing_state() is not None


def normalized(x: Tensor, weight: Tensor | None, bias: Tensor | None, pattern: str, eps: float, center: bool) -> Tensor:
    """y by the function of torch that has this region; by the reference where there is none."""
    last, groups = _LAST.fullmatch(pattern), _GROUPS.fullmatch(pattern)
    if last is not None:
        shape = x.shape[x.ndim - len(last[1].split()) :]
        if center:
            return F.layer_norm(x, shape, weight, bias, eps)
        # The older exporter to ONNX, which traces, has no rule for it.
        if bias is None and (torch.compiler.is_compiling() or not torch.onnx.is_in_onnx_export()):
            return F.rms_norm(x, shape, weight, eps)
    elif center and groups is not None:
        return F.group_norm(x, int(groups[1]), weight, bias, eps)
    elif center and pattern == "b c [...]" and x.ndim > 2:
        return F.instance_norm(x, None, None, weight, bias, True, 0.0, eps)
    return reference.normalize(x, weight, bias, parse(pattern), eps, center)[0]


def given(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, pattern: str, eps: float
) -> Tensor:
    """y for moments that are given."""
    if pattern == "[b] c [...]":
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
    return reference.standardize(x, mean, var, weight, bias, parse(pattern), eps)
