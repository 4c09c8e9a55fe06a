"""Answers from a fit: NumPy over posterior draws, never the model's graph again."""

from bayes_sd.predict import structures as structures
