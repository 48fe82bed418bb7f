"""Turns runs into statements, as data: intervals, tests, cells, verdicts."""
