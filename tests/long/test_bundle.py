"""The whole way: a bundle of quickstart, an environment that reaches no index and no hub, and the suite run there.

Bundling needs the package index, as preparing does; what comes after it is given one that cannot be reached.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.bundling.target import target_of, wheel_tags
from tests.cli.conftest import command

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
NO_NETWORK = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "OMP_NUM_THREADS": "1",
}


def test_a_bundle_runs_quickstart_where_there_is_no_network(tmp_path: Path) -> None:
    made = command("prepare", "--suite", "quickstart", "--bundle", "bundle", cwd=tmp_path, timeout=900)
    assert made.returncode == 0, made.stderr
    (tmp_path / "home").mkdir()
    bundle = (tmp_path / "bundle").rename(tmp_path / "home" / "copied")
    environment = {**NO_NETWORK, "HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"], "PYTHON": sys.executable}
    _ok(["bash", str(bundle / "install.sh")], tmp_path, environment)
    environment |= {"HARNESS_CACHE": str(bundle / "cache"), "HF_HUB_OFFLINE": "1"}
    harness = str(bundle / "venv" / "bin" / "harness")
    run = ["run", "--offline", "--suite", "quickstart", "--limit", "1", "--max-steps", "1"]
    assert "6 ok" in _ok([harness, *run], tmp_path, environment)
    assert "quickstart: everything is there" in _ok([harness, "doctor", "--suite", "quickstart"], tmp_path, environment)


def test_a_bundle_for_another_python_holds_wheels_of_it_in_small_parts(tmp_path: Path) -> None:
    other = "3.12" if sys.version_info[:2] != (3, 12) else "3.13"
    options = ["--python", other, "--without", "torch==2.11.0", "--part-size", "60MiB"]
    made = command("prepare", "--suite", "quickstart", "--bundle", "parts", *options, cwd=tmp_path, timeout=900)
    assert made.returncode == 0, made.stderr
    parts = list((tmp_path / "parts").iterdir())
    assert max(part.stat().st_size for part in parts) <= 60 << 20
    _ok(["bash", str(tmp_path / "parts" / "join.sh"), str(tmp_path / "joined")], tmp_path, dict(os.environ))
    wheels = list((tmp_path / "joined" / "wheels").iterdir())
    tags = target_of(other, None).tags()
    assert len(wheels) > 80 and all(wheel_tags(wheel) & tags for wheel in wheels)
    assert not [wheel.name for wheel in wheels if wheel.name.startswith(("torch-", "triton-", "nvidia_"))]


def _ok(arguments: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
