"""What all tools share: the modules and norms of a model, how its layers are connected, and how it is called."""
