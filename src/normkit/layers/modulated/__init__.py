"""Norms whose output is modulated: by a gate, a condition, the features of a style, a map of labels."""
