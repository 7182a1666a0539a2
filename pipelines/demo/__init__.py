"""The embedded default: what the tiny checkpoint was pretrained on, the demo's data, and the demo run itself."""
