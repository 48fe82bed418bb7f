"""Tools that read or change a model's normalization; `walk` is the only one that edits a model."""
