"""Figures, each drawn from a summary."""
