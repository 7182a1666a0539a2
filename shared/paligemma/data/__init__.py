"""From JSONL rows and image files to batches: images, tokens, records, loader."""
