"""Where a checkpoint can come from, and how it gets to this machine; `fetch` is where to begin, the rest is one kind each."""
