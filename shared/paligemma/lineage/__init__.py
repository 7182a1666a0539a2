"""Questions about artifacts, answered from their records. No server, and nothing is changed but what `prune` may delete."""
