"""Training: data preparation, fine-tuning, checkpoints."""
