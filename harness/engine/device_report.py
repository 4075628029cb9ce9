"""What torch says of itself and of the devices, printed as JSON: ``python -m harness.engine.device_report``.

Run in a process of its own: looking at a CUDA device makes a context on it, and a damaged torch may end the process.
"""

from __future__ import annotations

import re
import warnings

import torch

from harness.diagnosis import TorchDevice, TorchFacts

_ARCHITECTURE = re.compile(r"(?:sm|compute)_(\d+)(\d)")


def torch_facts() -> TorchFacts:
    """Return what torch says, warnings among it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        architectures = tuple(torch.cuda.get_arch_list())
        # Asked only where a device can be used: the count also holds those that a driver is too old for.
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        devices = tuple(_device(index, architectures) for index in range(count))
    return TorchFacts(
        version=str(torch.__version__),
        built_for=_built_for(),
        num_threads=torch.get_num_threads(),
        architectures=architectures,
        devices=devices,
        warnings=tuple(dict.fromkeys(" ".join(str(warning.message).split()) for warning in said)),
    )


def has_code_for(capability: tuple[int, int], architectures: tuple[str, ...]) -> bool:
    """Return whether code for one of these architectures runs on a device: same major version, no later minor one.

    Source: torch 2.13.0, torch/cuda/__init__.py, ``_CompatInterval``; its exceptions for embedded devices are left out.
    """
    codes = [(int(found[1]), int(found[2])) for name in architectures if (found := _ARCHITECTURE.match(name))]
    return not codes or any(code[0] == capability[0] and code[1] <= capability[1] for code in codes)


def _built_for() -> str:
    if torch.version.cuda is not None:
        return f"CUDA {torch.version.cuda}"
    hip = getattr(torch.version, "hip", None)
    return "CPU" if hip is None else f"ROCm {hip}"


def _device(index: int, architectures: tuple[str, ...]) -> TorchDevice:
    properties = torch.cuda.get_device_properties(index)
    capability = (int(properties.major), int(properties.minor))
    nvidia = torch.version.cuda is not None
    try:
        free = int(torch.cuda.mem_get_info(index)[0])
    except RuntimeError:  # of a device that is lost, or in exclusive use
        free = None
    return TorchDevice(
        name=str(properties.name),
        capability=capability,
        memory_bytes=int(properties.total_memory),
        free_bytes=free,
        # The rule of torch.cuda.is_bf16_supported(), which asks the present device alone.
        bf16=capability >= (8, 0) if nvidia else True,
        supported=has_code_for(capability, architectures) if nvidia else True,
    )


if __name__ == "__main__":
    print(torch_facts().model_dump_json())
