"""Whole models on a CPU, with torch's norms and with those of normkit."""
