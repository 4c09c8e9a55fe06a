"""Priors, the design of a data set, and the PyMC model built from both."""
