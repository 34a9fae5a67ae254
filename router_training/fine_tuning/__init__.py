"""What fine-tunings share: the loop, checkpoints, figures, logs, temperature."""
