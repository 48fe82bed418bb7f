"""The rows of the catalog, one file for each family of methods."""
