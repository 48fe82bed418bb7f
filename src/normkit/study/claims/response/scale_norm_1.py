"""ScaleNorm-1: scale norm trains a Transformer as well as layer norm, with one parameter."""

from __future__ import annotations

from normkit.study.claims.transformers import as_well

EXPERIMENTS = (as_well("ScaleNorm-1", "scale_norm", "layer_norm"),)
