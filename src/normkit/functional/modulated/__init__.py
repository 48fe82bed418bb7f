"""Norms whose output is modulated: by a gate."""
