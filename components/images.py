"""Container images that the components run in on a cluster. Each holds this repository, installed, and nothing else."""

CPU_IMAGE = "paligemma:cpu"
"""Steps that need no accelerator; built from `docker/`."""
