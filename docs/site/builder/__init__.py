"""Builds the documentation site: stages the pages of both trees, makes pages from code and data, and calls Sphinx."""
