"""Checkpoint files in, parameters out, and back. Knows the models, not the training."""
