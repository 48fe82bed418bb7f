"""Facts of a model and its norms, for the rules: from the modules, one traced run and a few trials."""
