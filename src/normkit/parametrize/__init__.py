"""Norms of weights: they normalize parameters, not activations."""

from normkit.parametrize.spectral import SpectralNorm, remove_spectral_norm, spectral_norm
from normkit.parametrize.standardize import (
    WeightStandardization,
    remove_weight_standardization,
    weight_standardization,
)
from normkit.parametrize.weight import WeightNorm, remove_weight_norm, weight_norm
from normkit.parametrize.weight_init import InitReport, InitRow, init_weight_norm

__all__ = [
    "InitReport",
    "InitRow",
    "SpectralNorm",
    "WeightNorm",
    "WeightStandardization",
    "init_weight_norm",
    "remove_spectral_norm",
    "remove_weight_norm",
    "remove_weight_standardization",
    "spectral_norm",
    "weight_norm",
    "weight_standardization",
]
