"""The training engine: PyTorch's own distributed stack around Hugging Face model classes."""
