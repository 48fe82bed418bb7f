"""What the measurements of audit rules share, and those of later rules."""
