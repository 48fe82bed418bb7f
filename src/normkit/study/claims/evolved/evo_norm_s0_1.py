"""EvoNormS0-1: EvoNorm-S0 does not depend on the batch."""

from __future__ import annotations

from normkit.study.claims.small_batches import independence

EXPERIMENTS = independence("EvoNormS0-1", "evo_norm_s0", errors_extended=True)
