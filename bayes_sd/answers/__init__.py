"""Answers from a posterior: NumPy over draws, never the model's graph again."""
