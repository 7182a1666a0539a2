"""Fine-tuning: recipe, loss, step. Knows models and checkpoints, not components."""
