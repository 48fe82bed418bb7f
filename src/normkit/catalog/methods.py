"""The rows of the catalog in their order: facts about each method, and its claimed strengths and weaknesses."""

from __future__ import annotations

from normkit.catalog.rows import evolved, pointwise, response, running, standard, weights

METHODS = (
    *standard.ROWS,
    *response.ROWS,
    *evolved.ROWS,
    *pointwise.ROWS,
    *running.ROWS,
    *weights.ROWS,
)
"""In the order of the tables; the norms of weights come last."""
