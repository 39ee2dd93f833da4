"""Grading of answers, metrics over them, and pages to read them."""
