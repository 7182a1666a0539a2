"""Fine-tuning: recipe, loss, step, loop, state. Knows models and checkpoints, but not components."""
