"""A Ray cluster of our own does the runs of a suite, listens on loopback only, and leaves nothing behind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import RANDOM
from tests.ray_cluster import arguments, listening, outcomes, start, wait_until

pytest.importorskip("ray")
pytestmark = pytest.mark.slow
LOCAL = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


@pytest.mark.timeout(180)
def test_a_cluster_of_our_own_does_the_runs_listens_on_loopback_only_and_is_stopped(
    tmp_path: Path, tiny_llama: Path
) -> None:
    folder = tmp_path
    (folder / "tiny.toml").write_text(RANDOM)
    with start(arguments(tiny_llama), folder, folder / "cache") as harness:
        parent = psutil.Process(harness.pid)
        wait_until(lambda: any("raylet" in child.name() for child in parent.children(recursive=True)), 60)
        seen: set[tuple[str, int]] = set()
        family: set[int] = set()

        def ended() -> bool:
            if harness.poll() is None:
                seen.update(listening(parent))
                family.update(child.pid for child in parent.children(recursive=True))
            return harness.poll() is not None

        wait_until(ended, 120)
        said = harness.stdout.read() if harness.stdout else ""
    assert harness.returncode == 0, said
    assert outcomes(folder) == Counter({(label, 1, "ok"): 1 for label in ("full", "lisa", "galore")})
    assert len(seen) > 3
    assert {address for address, _ in seen} <= LOCAL
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in family), 20)
    assert not list((folder / "results" / "records").glob(".work/*"))
