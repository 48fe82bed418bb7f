"""The speed benchmark: what is timed, who is timed, errors against the definition, results and their pictures."""
