"""The page: its parts as data, and the templates that show them."""
