"""Training: the numbers of a design, trials and their runs, and copies of a model that are trained at once."""
