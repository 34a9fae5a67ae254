"""Fine-tuning a text classifier that routes: data, steps, checkpoints, figures, command line."""
