"""Chan's formula: the moments of two sets of values together, from those of each. No squares of means are subtracted.

Source: Chan, Golub & LeVeque 1983, Algorithms for Computing the Sample Variance.
"""

from __future__ import annotations

from typing import Any


def merging_weights(count: int, other: int) -> tuple[float, float]:
    """The weights that merge the moments of two sets, the first of which may be empty.

    With ``step = other_mean - mean``: ``mean += step * share``, and a sum of products of two deviations, such as of
    squares, is ``products + other_products + step * step * factor``.

    Args:
        count, other: numbers of values.

    Returns:
        ``share`` and ``factor``.

    Example:
        >>> merging_weights(1, 3)
        (0.75, 0.75)
    """
    share = other / max(count + other, 1)
    return share, count * share


def merged_variance(variance: Any, other: Any, step: Any, share: float) -> Any:
    """The biased variance of two sets together, where the other one has this share of all values.

    Args:
        variance, other: biased variances, numbers or tensors.
        step: the difference of the means.
        share: as from `merging_weights`.

    Example:
        >>> merged_variance(0.25, 0.25, 2.0, 0.5)  # of 0 and 1, and of 2 and 3
        1.25
    """
    return variance * (1 - share) + other * share + step**2 * (share * (1 - share))


def pooled_moments(counts: Any, means: Any, variances: Any) -> tuple[Any, Any, Any]:
    """The number, mean and biased variance of several sets together; tensors, with the sets along the first dimension.

    Args:
        counts: numbers of values; a set may be empty.
        means, variances: of each set; any where it is empty.

    Returns:
        The count, the mean and the variance; 0 for the last two if all sets are empty.

    Example:
        >>> import torch
        >>> pooled_moments(*torch.tensor([[1.0, 3.0], [0.0, 4.0], [0.0, 2.0]]))
        (tensor(4.), tensor(3.), tensor(4.5000))
    """
    count = counts.sum(0)
    mean, variance = mixed_moments(counts / count.clamp(min=1), means, variances, 0)
    return count, mean[0], variance[0]


def mixed_moments(shares: Any, means: Any, variances: Any, dim: int) -> tuple[Any, Any]:
    """The mean and biased variance of several sets together, which lie along a dimension of tensors and stay there.

    Args:
        shares: of each set in all values.
        means, variances: of each set.
        dim: the dimension.

    Returns:
        The mean and the variance, with size 1 in that dimension.

    Example:
        >>> import torch
        >>> mixed_moments(*torch.tensor([[0.25, 0.75], [0.0, 4.0], [0.0, 2.0]]), 0)
        (tensor([3.]), tensor([4.5000]))
    """
    mean = (shares * means).sum(dim, keepdim=True)
    return mean, (shares * (variances + (means - mean) ** 2)).sum(dim, keepdim=True)
