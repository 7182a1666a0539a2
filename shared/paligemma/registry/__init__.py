"""The registry of a model's releases: folders that never change, their signatures, and the pointer to the champion."""
