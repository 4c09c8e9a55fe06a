"""Benchmark runs: one reader a format, the run table and its check, and loads to ask about."""
