"""Real servers for tests, each a context manager on 127.0.0.1: Cloud Storage, Secret Manager, Kaggle, and a proxy of faults."""
