"""Benchmark and comparison harness for memory-efficient fine-tuning of large language models."""

__version__ = "0.1.0"
