"""Hugging Face folders, as `transformers` reads and writes them. Needs no `transformers`."""
