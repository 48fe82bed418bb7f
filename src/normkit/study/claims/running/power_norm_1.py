"""PowerNorm-1: power norm suits a Transformer better than batch norm."""

from __future__ import annotations

from normkit.study.claims.transformers import better

EXPERIMENTS = (better("PowerNorm-1", "power_norm", "batch_norm"),)
