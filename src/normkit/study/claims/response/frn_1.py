"""FRN-1: filter response norm does not depend on the batch."""

from __future__ import annotations

from normkit.study.claims.small_batches import independence

EXPERIMENTS = independence("FRN-1", "filter_response_norm")
