"""The way of one call, the same for every function: checks, the fast path, the operator, running statistics."""
