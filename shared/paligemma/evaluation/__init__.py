"""Evaluates a model's answers."""
