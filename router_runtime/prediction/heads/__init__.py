"""Heads: the learned multi-output part on top of the features."""
