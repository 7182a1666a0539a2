"""The pipeline's steps. Each is usable alone from its command line, and wired into the DAG by its `component.py`."""
