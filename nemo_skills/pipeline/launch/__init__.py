"""Plan, render, submit."""
