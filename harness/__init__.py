"""Benchmark and comparison harness for memory-efficient fine-tuning of large language models."""

from harness.import_guard import guard_imports

__version__ = "0.1.0"

guard_imports()
