"""Holds a local model's entry against the files of its folder, before anything is loaded. No torch.

What cannot be read here says nothing: loading says it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from harness.catalogue.models import USUAL_ARCHITECTURES, USUAL_PLACES, BaseModelSpec
from harness.errors import HarnessError

LONGEST_HEADER = 1 << 28
"""Bytes of a safetensors header that are read; it lists the tensors of one file."""
WITHOUT_WEIGHTS = ("OlmoForCausalLM", "NanoChatForCausalLM")
"""Architectures whose norms have none, so that no tensor stands where they are."""


def check_entry(spec: BaseModelSpec, folder: Path, *, own: bool) -> None:
    """Check that an entry's architecture and paths are those of a folder.

    Args:
        spec: The entry.
        folder: With config.json and safetensors.
        own: The entry names the folder itself; else the folder stands in for the entry's weights, and its architecture
            is its own.

    Raises:
        HarnessError: they are not; the sentence says what the folder has.
    """
    found = architectures(folder / "config.json")
    if own and found and spec.architecture is not None and spec.architecture not in found:
        raise HarnessError(
            f"model '{spec.name}': architecture = '{spec.architecture}' in its entry, but config.json in {folder} says "
            f"{', '.join(found)}: set architecture to that, or give another folder"
        )
    names = tensor_names(folder)
    usual = not found or any(name in USUAL_ARCHITECTURES for name in found)
    for role in USUAL_PLACES if names else ():
        path = getattr(spec, role) or (USUAL_PLACES[role] if usual and getattr(spec, role) is None else None)
        if path is None or role == "head" or (role == "final_norm" and any(name in WITHOUT_WEIGHTS for name in found)):
            continue  # a head that is the embedding has no tensor of its own
        if not _holds(names, path):
            blocks = sorted({match[1] for name in names if (match := re.match(r"(.+?)\.\d+\.", name))})
            there = f"; its numbered modules are {', '.join(blocks)}" if role == "blocks" and blocks else ""
            raise HarnessError(
                f"model '{spec.name}': no tensor in {folder} is inside '{path}', where its entry has the {role}{there}"
                f": set {role} in the entry of the model"
            )


def tensor_names(folder: Path) -> list[str]:
    """Return the names of all tensors in a folder's safetensors files; none where a header cannot be read."""
    names: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as opened:
                size = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(size)) if size <= LONGEST_HEADER else {}
        except (OSError, ValueError, RecursionError):
            return []
        names += [name for name in header if name != "__metadata__"] if isinstance(header, dict) else []
    return names


def _holds(names: Sequence[str], path: str) -> bool:
    """Return whether a tensor is inside a path, or inside its end: base models are saved without their first word."""
    words = path.split(".")
    ends = [f".{'.'.join(words[first:])}." for first in range(len(words))]
    return any(end in f".{name}" for name in names for end in ends)


def architectures(file: Path) -> list[str]:
    """Return the classes that a config.json names; none where it cannot be read."""
    try:
        found = json.loads(file.read_bytes())["architectures"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    return [str(name) for name in found] if isinstance(found, list) else []
