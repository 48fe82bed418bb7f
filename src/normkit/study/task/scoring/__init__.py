"""How a task is scored: what outputs predict, the metric over a whole set, its direction, and what guessing gives."""
