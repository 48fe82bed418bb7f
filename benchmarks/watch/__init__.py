"""What `normkit.watch` costs, and its picture in the docs."""
