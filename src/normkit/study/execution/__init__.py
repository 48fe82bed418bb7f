"""Runs trials: which come next, which workers train them, and where their runs are stored."""
