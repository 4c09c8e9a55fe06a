"""Whether the model can be believed: a simulated server to break its assumptions on."""
