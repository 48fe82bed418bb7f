"""Batch normalization as a layer, and its relatives: frozen, ghost batches, renormalization, many processes."""
