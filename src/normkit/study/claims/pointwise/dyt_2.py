"""DyT-2: dynamic tanh trains a Transformer as well as layer norm."""

from __future__ import annotations

from normkit.study.claims.factors import Factors
from normkit.study.claims.transformers import as_well, under_all

EXPERIMENTS = (
    as_well("DyT-2", "dynamic_tanh", "layer_norm"),
    *under_all("DyT-2", "dynamic_tanh", "layer_norm", "upper", omitted=(Factors(optimizer="sgd"),)),
)
