"""Real servers for tests, each a context manager on 127.0.0.1: Google Cloud Storage, Kaggle, and a proxy that breaks either."""
