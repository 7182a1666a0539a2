"""Reads and writes checkpoint files. Knows the models, but not training."""
