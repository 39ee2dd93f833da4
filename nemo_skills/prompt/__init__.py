"""Prompt configs, chat templates and few-shot examples."""
