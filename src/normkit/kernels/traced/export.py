"""Export to ONNX and tracing by TorchScript: torch's own functions take the place of normkit's operators."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional as F

from normkit.kernels import formula
from normkit.kernels.formula import ACTIVATIONS, Arguments, Result

_GROUPS = re.compile(r"b \(g=(\d+) \[c\]\) \[\.\.\.\]")
_LAST = re.compile(r"\.\.\. \[(c\d*(?: c\d*)*)\]")


def norm(a: Arguments, moments: bool) -> Result:
    """The same as the formula, by functions of torch if they return the same y."""
    if moments or a.mask is not None:
        return formula.norm(a)
    s = a.x if a.residual is None else a.x + a.residual
    y = _torch_norm(a._replace(x=s, residual=None, activation="none"))
    return Result(ACTIVATIONS[a.activation](y), None if a.residual is None else s)


def _torch_norm(a: Arguments) -> Tensor:
    """y by the function of torch for this region, or else by the formula."""
    x, weight, bias, pattern, eps, center, mean, var, *_ = a
    if var is not None:
        if pattern == "[b] c [...]":
            return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
        return formula.norm(a).y
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
    return formula.norm(a).y
