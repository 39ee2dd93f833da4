"""Finding answers in text, and comparing them: first cheaply, then symbolically."""
