"""What the fuzzing tests read of a calibration: the answers of its parts, a device profile, a bundle's description."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.bundling import bundle
from harness.calibration_log import log_file, read_log
from harness.calibration_profile import profile_of
from harness.device_profile import Rates, profile_text, read_profile
from harness.errors import HarnessError
from harness.report.pages.calibration import calibration_lines, calibration_tables
from tests.comparing import make
from tests.fuzzing import JSON_ONLY, TOML_ONLY, Target, as_json, as_toml, documents

PROFILE: dict[str, Any] = {
    "device_name": "a GPU",
    "device_type": "cuda",
    "compute_capability": "9.0",
    "memory_bytes": 80 * 2**30,
    "driver": "580.1",
    "torch": "2.13.0",
    "sizes": "full",
    "measured_at": "2026-01-01T00:00:00Z",
    "context_bytes": 500_000_001,
    "blas_workspace_bytes": [33_554_432, 33_554_432],
    "rates": {"copy_bytes_per_second": 3e12, "bf16_flops": 7e14},
    "solver": {"svd": 2.5},
    "attention": [
        {
            "mask": False,
            "grouped": True,
            "head_size": 128,
            "kernel": "flash",
            "kept_bytes": 4.0,
            "backward_bytes": 516.0,
        }
    ],
}


def part(name: str, group: str, facts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return an answer as JSON has it, on a GPU."""
    reading = {"name": "n", "value": 2.0, "unit": "bytes", "expected": 1.5, "expected_by": "planner", "at_most": 3.0}
    return {
        **{"schema_version": 1, "part": name, "group": group, "sizes": "full", "outcome": "ok", "sentence": "why"},
        **{"readings": [reading], "facts": facts, "seconds": 1.0, "started_at": "2026-01-01T00:00:00Z"},
        **{"environment_id": make.CUDA.environment_id, "environment": make.CUDA.model_dump(mode="json")},
        **changes,
    }


ATTENTION = {"kernel": "flash", "head_size": 128, "kept_bytes": 4.0, "backward_bytes": 516.0}
PART = part("context", "constants", {"context_bytes": 500_000_001})
PARTS = [
    PART,
    part("device", "checks", {"compute_capability": "9.0"}),
    part("copy on the device", "checks", {}),
    part("matrix products, bf16", "checks", {}),
    part("cuBLAS workspaces", "constants", {"forward_bytes": 33_554_432, "backward_bytes": 33_554_432}),
    part("SVD", "constants", {"svd": 2.5}),
    part("attention with a mask", "constants", ATTENTION),
    part("QR", "constants", {}, outcome="failed", readings=[]),
]


_SHORT = [one | {"environment": 0} for one in PARTS]
"""With a word for the environment, so that faults are put into the rest."""


def _parts(folder: Path) -> Callable[[bytes], object]:
    """Answers, the lines that a report makes of them, and the profile, which is read again."""
    file = log_file(folder)
    file.parent.mkdir(parents=True)
    good = "".join(f"{json.dumps(one)}\n" for one in PARTS).encode()
    where = json.dumps(make.CUDA.model_dump(mode="json")).encode()
    place = folder / "profile.toml"

    def read(data: bytes) -> object:
        file.write_bytes(good + data.replace(b'"environment": 0', b'"environment": ' + where) + b"\n")
        log = read_log(folder)
        assert len(log.results) >= len(PARTS), "a good line is lost"
        assert all(len(sentence) < 2000 and "\n" not in sentence for sentence in log.warnings)
        for results in (log.latest(), log.latest("full", make.CUDA.environment_id)):
            profile = profile_of(results)
            lines = calibration_lines(results, (), Rates() if profile is None else profile.rates)
            assert calibration_tables(lines)
            if profile is not None:
                place.write_text(profile_text(profile), encoding="utf-8", newline="\n")
                assert read_profile(place) == profile
        if log.warnings and len(log.results) == len(PARTS):
            raise HarnessError(log.warnings[0])
        return log

    return read


def _profiles(folder: Path) -> Callable[[bytes], object]:
    file = folder / "profile.toml"

    def read(data: bytes) -> object:
        file.write_bytes(data)
        found = read_profile(file)
        file.write_text(profile_text(found), encoding="utf-8", newline="\n")
        assert read_profile(file) == found
        return found

    return read


def _bundles(folder: Path) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        (folder / bundle.ABOUT).write_bytes(data)
        bundle.check_place(folder)
        return None

    return read


ABOUT = {"format": 1, "source_checksum": "0", "packages": {"torch": "2.13.0"}, "notes": []}
CALIBRATING: dict[str, Target] = {
    "calibration parts": Target(_parts, documents([*_SHORT, PART], as_json, *JSON_ONLY)),
    "device profiles": Target(_profiles, documents([PROFILE], as_toml, *TOML_ONLY)),
    "bundle descriptions": Target(_bundles, documents([ABOUT], as_json, *JSON_ONLY)),
}
