"""Tools that read or change a model's normalization; `model.tree` is the only one that exchanges modules."""
