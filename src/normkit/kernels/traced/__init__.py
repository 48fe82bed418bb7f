"""What takes the place of operators in graphs: torch's own functions for export, plain operations on a GPU."""
