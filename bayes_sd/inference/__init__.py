"""Sampling, the convergence gate, and the frozen Fit."""
