"""Norms of responses: each channel is divided by a measure of its own size, or of its neighbours'."""
