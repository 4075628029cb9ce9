"""Asks others about this machine's devices: torch in a process of its own, and the driver's ``nvidia-smi``.

Nothing here imports torch, and neither a torch that is absent or broken nor a driver that hangs ends the caller.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from pydantic import ValidationError

from harness.diagnosis import SeenDevice, TorchFacts
from harness.files import reason_of

TORCH_SECONDS = 60.0
"""Torch may lie on a network file system under load."""
NVIDIA_SECONDS = 10.0
_MIB = 1 << 20


def ask_torch() -> TorchFacts | str:
    """Return what torch says, or why it cannot be asked."""
    try:
        if importlib.util.find_spec("torch") is None:
            return "it is not installed"
    except (ImportError, ValueError):
        return "it is not installed"
    command = [sys.executable, "-P", "-m", "harness.engine.device_report"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=TORCH_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"its import took longer than {TORCH_SECONDS:.0f} s"
    except OSError as error:
        return f"{sys.executable} cannot be started: {reason_of(error)}"
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else f"the process that imports it ended with exit status {done.returncode}"
    try:
        return TorchFacts.model_validate_json(done.stdout.strip().rpartition("\n")[2])
    except ValidationError:
        return "what its process printed cannot be read"


def ask_nvidia() -> tuple[SeenDevice, ...] | None:
    """Return the devices that the driver sees; None where ``nvidia-smi`` is not there or fails."""
    command = [
        "nvidia-smi",
        "--query-gpu=driver_version,memory.total,memory.used,name",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=NVIDIA_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    rows = [line.split(", ", 3) for line in done.stdout.splitlines()]
    return tuple(
        SeenDevice(name=row[3], driver=row[0], memory_bytes=_bytes(row[1]), used_bytes=_bytes(row[2]))
        for row in rows
        if len(row) == 4
    )


def _bytes(mebibytes: str) -> int | None:
    """Return bytes of a number in MiB; parts that a device does not tell are ``[N/A]``."""
    return int(mebibytes) * _MIB if mebibytes.isdecimal() else None
