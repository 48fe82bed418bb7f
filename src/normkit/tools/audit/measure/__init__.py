"""What the rules read: facts of a model and its norms, from the modules, one traced run and a few trials."""
