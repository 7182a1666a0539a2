"""Where files live, and how they get there whole."""
