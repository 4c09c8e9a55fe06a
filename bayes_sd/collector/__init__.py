"""Drive a real vLLM server over a plan of runs and save what it measured."""
