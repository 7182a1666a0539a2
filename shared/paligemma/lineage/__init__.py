"""Answers questions about artifacts from their records. Needs no server; only `prune` changes anything."""
