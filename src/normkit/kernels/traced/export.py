"""Export to ONNX and tracing by TorchScript: torch's own functions take the place of normkit's operators."""

from __future__ import annotations

import re
from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional as F

from normkit.kernels import formula
from normkit.kernels.formula import ACTIVATIONS, GATES, Arguments, Result
from normkit.pattern import parse

_GROUPS = re.compile(r"b \(g=(\d+) \[c\]\) \[\.\.\.\]")
_LAST = re.compile(r"\.\.\. \[(c\d*(?: c\d*)*)\]")


def norm(a: Arguments, moments: bool) -> Result:
    """The same as the formula, by functions of torch if they return the same y."""
    if moments or a.mask is not None:
        return formula.norm(a)
    gate = None if a.gate is None else GATES[a.gate_activation](a.gate)
    s = a.x if a.residual is None else a.x + a.residual
    s = s if gate is None or not a.gate_first else s * gate
    y = _affine(a._replace(x=s, residual=None, activation="none", gate=None, skip=None, gate_first=False))
    y = y if gate is None or a.gate_first else y * gate
    y = y if a.skip is None else y + a.skip
    return Result(ACTIVATIONS[a.activation](y), None if a.residual is None else s)


def _affine(a: Arguments) -> Tensor:
    """y without what comes after it; functions of torch take weights of the features alone."""
    weight, bias = a.weight, a.bias
    if weight is not None and a.zero_centered:
        weight = weight + 1
    if a.varying() is None and not a.is_rounded():
        return _torch_norm(a._replace(weight=weight, zero_centered=False))
    y = _torch_norm(a._replace(weight=None, bias=None, cast_first=False))
    if a.is_rounded():
        weight, bias = (None if t is None else t.to(y.dtype) for t in (weight, bias))
    features = {level.dim for level in parse(a.pattern).levels(a.x.shape) if level.feature}
    y = y if weight is None else y * broadcastable(weight, a.x, features)
    y = y if bias is None else y + broadcastable(bias, a.x, features)
    return y.to(a.x.dtype)


def broadcastable(t: Tensor, x: Tensor, features: Collection[int]) -> Tensor:
    """A weight or bias with the dimensions of x, in which it broadcasts against it."""
    if t.dim() == x.dim():
        return t
    return t.reshape([size if dim in features else 1 for dim, size in enumerate(x.shape)])


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
