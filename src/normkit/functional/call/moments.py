"""The moments of a call's cells, with their gradient: for methods that do more with them than standardize."""

from __future__ import annotations

from torch import Tensor
from torch.compiler import is_compiling

from normkit.kernels import formula, operator
from normkit.kernels.context import is_transformed
from normkit.kernels.formula import Arguments


def moments(a: Arguments) -> tuple[Tensor | None, Tensor]:
    """Mean and standard deviation of each cell of `a.x`, flat, in the arithmetic dtype; no mean if none is subtracted.

    A cell of padding alone has 0 and 1.
    """
    a = a._replace(weight=None, bias=None, residual=None, activation="none")
    # vmap takes plain torch as a whole, moments included.
    out = formula.norm(a) if not is_compiling() and is_transformed() else operator.run(a, moments=True)
    assert out.std is not None
    return (out.mean if a.center else None), out.std
