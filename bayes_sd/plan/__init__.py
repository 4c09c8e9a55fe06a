"""What to measure, as files that vLLM itself runs."""
