"""Models before and after `normkit.fold`, timed."""
