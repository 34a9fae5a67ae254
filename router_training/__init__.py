"""The verbs that make a router: read, split, embed, fit, calibrate, tune, evaluate, keep."""
