"""Predicted memory and time of a run with fake tensors: no GPU, no weights."""
