"""What made an artifact, from what: one JSON record beside each, written last. No server."""
