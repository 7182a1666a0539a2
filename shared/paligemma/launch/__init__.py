"""Work on machines of its own, through the services that have them: Vertex AI, and Kubeflow Trainer on Kubernetes."""
