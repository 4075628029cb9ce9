"""Kept weights on disk: which files are in their folder, and whether what is there can be scored again.

A folder is named by a record only once it is whole: the adapter with the tokenizer and the place of its base, or the
weights themselves; merged weights come beside an adapter later, their configuration last. The record and a model card
lie in it, so that it says what it is wherever it is copied to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.record import Record

ADAPTER, BASE, CONFIG = "adapter", "base.json", "config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CARD, RECORD = "README.md", "record.json"


class Source(BaseModel):
    """Where a base model or training data come from, as far as it was known when the weights were kept."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    hub_id: str | None = None
    revision: str | None = None
    repository: str | None = None
    """``owner/name`` on GitHub."""
    licence: str = ""
    stands_in: bool = False
    """Whether files of the user's lay in its place."""


class Origin(BaseModel):
    """What kept weights were made from; kept beside them, as a record does not say it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str = ""
    folder: str | None = None
    """Where the base lay on the machine that trained."""
    base: Source | None = None
    data: Source | None = None


@dataclass(frozen=True)
class Kept:
    """Kept weights, for a card to describe."""

    record: Record
    """Of the run that they are of."""
    added: Sequence[Record]
    """Later evaluations of them, in the order of time."""
    origin: Origin
    has_adapter: bool
    is_whole: bool
    """Whether a model of the base architecture is there, not an adapter alone."""


def origin_in(folder: Path) -> Origin:
    """Return what kept weights were made from; nothing is known of those of older records."""
    try:
        return Origin.model_validate_json((folder / BASE).read_bytes())
    except (OSError, ValidationError):
        return Origin()


def can_be_scored(folder: Path) -> bool:
    """Return whether kept weights are there: of an adapter its own, as merged ones beside it are not what is scored.

    Files that were deleted to free the disk leave the others behind, and in the absence of safetensors peft would load
    a pickle.
    """
    if (folder / ADAPTER).is_dir():
        return (folder / ADAPTER / ADAPTER_WEIGHTS).is_file()
    return (folder / CONFIG).is_file() and next(folder.glob("*.safetensors"), None) is not None
