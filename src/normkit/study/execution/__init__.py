"""Trials carried out: which come next, who trains them, and where their runs are stored."""
