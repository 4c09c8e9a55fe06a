"""The latency law as functions of operators only: NumPy arrays and PyTensor graphs alike."""

from bayes_sd.physics import structures as structures
