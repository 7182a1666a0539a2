"""Generates text from a model and prompts."""
