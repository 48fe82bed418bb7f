"""One training run, or many at once: the numbers of a design, trials and their runs, replicas of a model."""
