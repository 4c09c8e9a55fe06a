"""Tables and figures of answers; nothing here computes a latency."""
