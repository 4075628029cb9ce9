"""5,000 hostile files of each kind: no traceback, none that takes a second of processor time or a great deal of memory.

Beside the verdict each test prints how many were read and refused, and how long all took.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fuzz_targets import TARGETS
from tests.fuzzing import fuzz

pytestmark = pytest.mark.long

EXAMPLES = 5000


@pytest.mark.parametrize("kind", TARGETS)
def test_no_hostile_file_ends_in_a_traceback(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = TARGETS[kind]
    began = time.monotonic()
    read, refused = fuzz(target.make(tmp_path), target.inputs, EXAMPLES)
    with capsys.disabled():
        print(f"\n{kind}: {read + refused} inputs, {read} read, {refused} refused, {time.monotonic() - began:.0f} s")
    # Hypothesis draws a few more where a strategy gives the same input twice.
    assert read + refused >= EXAMPLES
    assert read > 0
