"""Server types that a job can host or reach, one module each."""
