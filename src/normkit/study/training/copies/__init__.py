"""Copies of a model that are trained together: one after the other, or all at once."""
