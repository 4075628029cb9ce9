"""Kept weights on disk: which files are in their folder, and whether what is there can be scored again.

A folder is named by a record only once it is whole: the adapter with the tokenizer and the place of its base, or the
weights themselves; merged weights come beside an adapter later, their configuration last.
"""

from __future__ import annotations

from pathlib import Path

ADAPTER, BASE, CONFIG = "adapter", "base.json", "config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def can_be_scored(folder: Path) -> bool:
    """Return whether kept weights are there: of an adapter its own, as merged ones beside it are not what is scored.

    Files that were deleted to free the disk leave the others behind, and in the absence of safetensors peft would load
    a pickle.
    """
    if (folder / ADAPTER).is_dir():
        return (folder / ADAPTER / ADAPTER_WEIGHTS).is_file()
    return (folder / CONFIG).is_file() and next(folder.glob("*.safetensors"), None) is not None
