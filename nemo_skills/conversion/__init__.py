"""Conversion of models between formats: Hugging Face folders, NeMo checkpoints, TensorRT-LLM engines."""
