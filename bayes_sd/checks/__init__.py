"""Whether a model can be believed: held-out predictions, comparisons, checks."""
