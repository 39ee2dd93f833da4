"""Job side of generation."""
