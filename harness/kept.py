"""Kept weights on disk: which files are in their folder, and whether what is there can be scored again.

A folder is named by a record only once it is whole: the adapter with the tokenizer and the place of its base, or the
weights themselves; merged weights come beside an adapter later, their configuration last.
"""

from __future__ import annotations

from pathlib import Path

ADAPTER, BASE, CONFIG = "adapter", "base.json", "config.json"


def can_be_scored(folder: Path) -> bool:
    """Return whether kept weights are there."""
    return (folder / CONFIG).is_file() or (folder / ADAPTER).is_dir()
