"""What training does to a model after it was changed: rounded weights, norms left out."""
