"""What every layer shares: how it is made, checked, shown and named in errors, in every version of torch."""
