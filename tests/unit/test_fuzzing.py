"""Files that are hostile: a sample of what ``tests/long/test_fuzzing.py`` reads in full."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz_targets import TARGETS
from tests.fuzzing import fuzz

EXAMPLES = {"record files": 40, "judge answers": 80, "judge replies": 80, "suite files": 150, "calibration parts": 100}
"""Where one takes longer; of all others 250."""


@pytest.mark.parametrize("kind", TARGETS)
def test_a_hostile_file_is_read_or_refused_in_one_sentence_within_a_second(kind: str, tmp_path: Path) -> None:
    target = TARGETS[kind]
    read, refused = fuzz(target.make(tmp_path), target.inputs, EXAMPLES.get(kind, 250))
    assert read > 0
    assert refused > 0 or kind == "judge answers"
