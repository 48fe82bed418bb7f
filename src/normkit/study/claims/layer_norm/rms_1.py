"""RMS-1: RMS norm trains a Transformer to the same loss as layer norm."""

from __future__ import annotations

from normkit.study.claims.transformers import under_all

EXPERIMENTS = under_all("RMS-1", "rms_norm", "layer_norm", True)
