"""Real processes killed a few times; tests/long has the same with hundreds of kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kills import Killer, started

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("prepared"),
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for children in /proc"),
]


def test_what_was_killed_goes_on_and_ends_as_if_nothing_had_happened(tmp_path: Path, tiny_llama: Path) -> None:
    killer = Killer(tmp_path, tiny_llama, 1, started)
    killer.round(6)
    assert killer.kills.total() >= 1
    assert killer.counts["ok"] == 3
