"""Backends that run the DAG elsewhere: Kubeflow Pipelines and Vertex AI Pipelines, behind one interface."""
