"""Data sets as they are published, to rows `{"image", "prefix", "suffix"}`: a module for each form, and what they share."""
