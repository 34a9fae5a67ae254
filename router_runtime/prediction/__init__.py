"""Queries to probabilities: encoders, features, heads, calibration."""
