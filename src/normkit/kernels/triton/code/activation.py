"""Activations and their derivatives, by their numbers in `normkit.kernels.formula.NUMBERS`."""

from __future__ import annotations

import triton
import triton.language as tl

from normkit.kernels.triton.code.constants import (
    GELU,
    GELU_TANH,
    LEAKY_RELU,
    PLUS_ONE,
    RELU,
    SIGMOID,
    SILU,
    TANH,
)


@triton.jit
def normal_cdf(z):
    return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))


@triton.jit
def tanh(z):
    """By the exponential, and near 0, where that would cancel, by its series."""
    e = tl.exp(-2.0 * tl.abs(z))
    far = (1.0 - e) / (1.0 + e)
    far = tl.where(z < 0, -far, far)
    s = tl.minimum(z * z, 0.01)
    near = s * (17.0 / 315.0 - s * (62.0 / 2835.0 - s * (1382.0 / 155925.0 - s * (21844.0 / 6081075.0))))
    near = z * (1.0 - s * (1.0 / 3.0 - s * (2.0 / 15.0 - near)))
    return tl.where(tl.abs(z) < 0.1, near, far)


@triton.jit
def sigmoid(z):
    e = tl.exp(-tl.abs(z))
    return tl.where(z < 0, e, 1.0) / (1.0 + e)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == RELU:
        return tl.where(z <= 0, 0.0, z)
    elif ACTIVATION == LEAKY_RELU:
        return tl.where(z < 0, 0.01 * z, z)
    elif ACTIVATION == SILU:
        return z * sigmoid(z)
    elif ACTIVATION == GELU:
        return z * normal_cdf(z)
    elif ACTIVATION == GELU_TANH:
        return 0.5 * z * (1.0 + tanh(0.7978845608028654 * (z + 0.044715 * z * z * z)))
    elif ACTIVATION == SIGMOID:
        return sigmoid(z)
    elif ACTIVATION == TANH:
        return tanh(z)
    elif ACTIVATION == PLUS_ONE:
        return z + 1.0
    else:
        return z


@triton.jit
def derivative(z, ACTIVATION: tl.constexpr):
    """The derivative of `activate`."""
    if ACTIVATION == RELU:
        return tl.where(z <= 0, 0.0, 1.0)
    elif ACTIVATION == LEAKY_RELU:
        return tl.where(z <= 0, z * 0.0 + 0.01, 1.0)
    elif ACTIVATION == SILU:
        s = sigmoid(z)
        return s * (1.0 + z * (1.0 - s))
    elif ACTIVATION == GELU:
        return normal_cdf(z) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    elif ACTIVATION == GELU_TANH:
        t = tanh(0.7978845608028654 * (z + 0.044715 * z * z * z))
        inside = 0.7978845608028654 * (1.0 + 0.134145 * z * z)
        return 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * inside
    elif ACTIVATION == SIGMOID:
        s = sigmoid(z)
        return s * (1.0 - s)
    elif ACTIVATION == TANH:
        t = tanh(z)
        return 1.0 - t * t
    else:
        return z * 0.0 + 1.0
