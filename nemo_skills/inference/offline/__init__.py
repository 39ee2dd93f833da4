"""Generation without a server: every process loads the model and takes its share of the rows.

`spec`, `text`, the engines and `worker` also run in an engine's own environment: they import nothing but the
standard library, the engine, and transformers.
"""
