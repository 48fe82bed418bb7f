"""Tasks from the set-ups of other libraries, none of which is imported: their objects are used by what they have."""
