"""Hugging Face folders, as `transformers` reads and writes them, but without needing `transformers`."""
