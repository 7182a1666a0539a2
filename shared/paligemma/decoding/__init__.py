"""Generating text from a model and its prompts."""
