"""What both sides share: errors, logging, structured mains, row files. Imports nothing else of ours."""
