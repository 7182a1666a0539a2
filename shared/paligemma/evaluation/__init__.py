"""Judging a model's answers."""
