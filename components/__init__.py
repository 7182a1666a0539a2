"""The pipeline's steps. Each runs alone from its command line, or in the DAG through its `component.py`."""
