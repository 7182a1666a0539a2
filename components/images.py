"""Container images for the components on a cluster. Each contains only this repository, installed."""

CPU_IMAGE = "paligemma:cpu"
"""Image for steps without an accelerator; built from `docker/`."""
