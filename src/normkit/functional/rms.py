"""Root mean square normalization: layer normalization without the mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling

from normkit.functional._checks import check_call, check_parameter
from normkit.functional.layer import check_normalized_shape, last_dims_pattern
from normkit.kernels import door
from normkit.kernels.autograd import normalized
from normkit.kernels.reference import arithmetic_dtype


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Divide by the root mean square of the last dimensions; the region is ``... [c]``, not centred.

    ``y = x / sqrt(mean(x ** 2) + eps) * weight``.

    Args:
        input: (..., *normalized_shape), any strides.
        normalized_shape: the sizes of the last dimensions.
        weight: of shape `normalized_shape`, or None.
        eps: added to the mean square; None means the machine epsilon of the arithmetic, which is float32's for
            half-precision input.

    Returns:
        A tensor with the input's shape, dtype and memory layout.

    Raises:
        ShapeError: the input does not end with `normalized_shape`, or the weight has another shape.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> functional.rms_norm(torch.tensor([[3.0, 4.0]]), (2,))
        tensor([[0.8485, 1.1314]])

    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """
    if not is_compiling():
        pattern = last_dims_pattern(len(normalized_shape))
        y = door.normalize(input, weight, None, pattern, eps, False, normalized_shape, None, None, None)
        if y is not None:
            return y
    check_call("rms_norm", input, 0.0 if eps is None else eps)
    shape = check_normalized_shape("rms_norm", input, normalized_shape)
    check_parameter("rms_norm", "weight", weight, shape, input)
    if eps is None:
        eps = torch.finfo(arithmetic_dtype(input.dtype)).eps
    return normalized(input, weight, None, last_dims_pattern(len(shape)), eps, False)
