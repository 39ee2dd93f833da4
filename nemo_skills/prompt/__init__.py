"""Prompt configs, chat templates and few-shot examples; the public functions are in `utils`."""
