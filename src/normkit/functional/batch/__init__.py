"""Batch normalization and its relatives: pure update, ghost batches, batch renormalization, many processes."""
