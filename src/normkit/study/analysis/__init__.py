"""From runs to statements, as data: intervals, tests, cells, verdicts."""
