"""Turns JSONL rows and image files into batches: images, tokens, records, loader."""
