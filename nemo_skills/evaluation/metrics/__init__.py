"""Metrics over graded rows; plain functions of numbers."""
