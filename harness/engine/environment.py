"""Where a run takes place: device, driver, Python, library versions, and the harness's own source."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import cache
from pathlib import Path

import torch

from harness.record_environment import Environment
from harness.source import checkout_state, source_checksum, training_checksum

PACKAGES = (
    "finetune-harness",
    "torch",
    "transformers",
    "peft",
    "lm-eval",
    "tokenizers",
    "safetensors",
    "accelerate",
    "datasets",
    "numpy",
    "bitsandbytes",
)


def default_device() -> torch.device:
    """Return the device a run uses: the first CUDA device, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@cache
def describe_environment() -> Environment:
    """Return the present environment."""
    device = default_device()
    cuda = device.type == "cuda"
    properties = torch.cuda.get_device_properties(device) if cuda else None
    commit, dirty = checkout_state()
    return Environment(
        device_type="cuda" if cuda else "cpu",
        device_name=properties.name if properties else _processor(),
        compute_capability=_compute_capability(device) if cuda else None,
        device_memory_bytes=properties.total_memory if properties else None,
        driver=_driver() if cuda else None,
        num_threads=torch.get_num_threads(),
        platform=platform.platform(),
        python=platform.python_version(),
        packages=_versions(),
        source_checksum=source_checksum(),
        training_checksum=training_checksum(),
        commit=commit,
        dirty=dirty,
        device_busy=_busy(device) if cuda else None,
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _compute_capability(device: torch.device) -> str | None:
    """Return an NVIDIA device's capability; None for AMD's: ROCm gives pieces of a gfx name that read like one."""
    if torch.version.hip is not None:
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}.{minor}"


def _driver() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    return text.splitlines()[0].strip()


def _busy(device: torch.device) -> str | None:
    """Return what else uses the device, or None; taken before this process allocates anything on it."""
    free, total = torch.cuda.mem_get_info(device)
    used = total - free
    # An idle device with one fresh context holds well under 1 GB.
    return f"{used} of {total} bytes in use before the run" if used > 1_000_000_000 else None


if __name__ == "__main__":
    print(describe_environment().model_dump_json())
