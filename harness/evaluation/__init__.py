"""Scores of a model: lm-eval tasks through our own ``LM``."""
