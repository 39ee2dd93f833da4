"""One toolkit from raw data to an evaluated, trained LLM, on a laptop, in Docker or on a Slurm cluster."""

__version__ = "0.1.0"
