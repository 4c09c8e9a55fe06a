"""Whether a model can be believed: checks, comparisons, and a simulated server to break it on."""
