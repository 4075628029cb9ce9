"""Block scores on disk: one small file a key, for a suite asks many times for what takes minutes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.files import read_json, said_as, write_file
from harness.spec import identity


class ScoreCache:
    """Block scores on disk, keyed by everything that can move them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: dict[str, Any]) -> list[float] | None:
        """Return the scores kept under a key, or None; a damaged file counts as none."""
        try:
            kept = read_json(self.file(key))
        except HarnessError:
            return None
        if not isinstance(kept, dict) or kept.get("key") != key or not isinstance(kept.get("scores"), list):
            return None
        scores = kept["scores"]
        return [float(score) for score in scores] if all(isinstance(score, int | float) for score in scores) else None

    def put(self, key: dict[str, Any], scores: Sequence[float]) -> None:
        """Keep scores under a key.

        Raises:
            HarnessError: the cache cannot be written.
        """
        with said_as(f"{self._folder}: block scores cannot be kept there", "set HARNESS_CACHE to a folder that can"):
            write_file(self.file(key), json.dumps({"key": key, "scores": list(scores)}))

    def file(self, key: dict[str, Any]) -> Path:
        """Return where the scores of a key lie."""
        return self._folder / f"{identity(key)}.json"
