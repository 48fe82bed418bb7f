"""Numbers, names and sentences of the report, in both languages."""
