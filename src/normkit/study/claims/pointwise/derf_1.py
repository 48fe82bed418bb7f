"""Derf-1: dynamic erf trains a Transformer better than layer norm and dynamic tanh."""

from __future__ import annotations

from normkit.study.claims.transformers import better

EXPERIMENTS = (better("Derf-1", "dynamic_erf", "layer_norm"), better("Derf-1", "dynamic_erf", "dynamic_tanh"))
