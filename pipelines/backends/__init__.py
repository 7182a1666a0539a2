"""What runs the DAG elsewhere: Kubeflow Pipelines and Vertex AI Pipelines, each behind the same four calls."""
