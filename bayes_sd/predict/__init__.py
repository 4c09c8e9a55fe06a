"""Answers from a fit: NumPy over posterior draws, never the model's graph again."""
