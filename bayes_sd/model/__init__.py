"""Priors, the inputs of the law, the PyMC graph, sampling, and the posterior as data."""
