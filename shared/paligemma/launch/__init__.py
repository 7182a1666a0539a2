"""Runs work as a separate job on other machines, through Vertex AI, or Kubeflow Trainer on Kubernetes."""
