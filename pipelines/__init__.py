"""The DAG, and the commands that compile and run it."""
