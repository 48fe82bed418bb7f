"""Layers without moments that take the place of a norm: a bounded function of each value by itself."""
