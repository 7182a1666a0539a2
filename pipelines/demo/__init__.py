"""The demo: the tiny checkpoint's pretraining, the demo's data, and the demo run."""
