"""Converts published data sets to rows `{"image", "prefix", "suffix"}`: one module per format, and shared modules."""
