"""What vendors state of GPUs: peak FLOP/s and memory, each with its source. Read from ``suites/devices.toml``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from harness.errors import HarnessError, near_miss
from harness.settings import ComputeCapability
from harness.toml_files import read_tables, validate


class DeviceSpec(BaseModel):
    """One entry of devices.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    summary: str
    names: tuple[str, ...] = Field(min_length=1)
    """As ``torch.cuda.get_device_name()`` gives them, without regard to case; one that ends in ``*`` is a beginning."""
    compute_capability: ComputeCapability | None = None
    """None: not an NVIDIA device. Source: NVIDIA's table, developer.nvidia.com/cuda-gpus."""
    bf16_flops: PositiveFloat | None = None
    """Dense peak, FLOP/s, a multiply-add being two; None: the device has no bf16."""
    tf32_flops: PositiveFloat | None = None
    """None: the device has no TF32."""
    fp32_flops: PositiveFloat | None = None
    """Without tensor cores; None: not read in any public table."""
    memory_gb: PositiveFloat
    """As the data sheet says, GB = 10^9 bytes."""
    source: str
    """The vendor's data sheet."""
    note: str = ""

    @property
    def memory_bytes(self) -> int:
        """Return the stated memory in bytes."""
        return round(self.memory_gb * 1e9)

    def peak_flops(self, dtype: Literal["fp32", "bf16"], *, tf32: bool = False) -> float | None:
        """Return the stated dense peak, FLOP/s, of matrix products in a dtype; None where the device has none.

        Args:
            dtype: Of the operands.
            tf32: Whether products of fp32 operands run as TF32; torch leaves that off.
        """
        if dtype == "bf16":
            return self.bf16_flops
        return self.tf32_flops if tf32 else self.fp32_flops

    def is_called(self, device_name: str) -> bool:
        """Return whether ``torch.cuda.get_device_name()`` gives this device that name."""
        found = device_name.casefold()
        known = [name.casefold() for name in self.names]
        return any(found.startswith(name[:-1]) if name.endswith("*") else found == name for name in known)


def load_devices(file: Path | None = None) -> dict[str, DeviceSpec]:
    """Return every device of devices.toml (or of ``file``) by short name.

    Raises:
        HarnessError: the file cannot be read or an entry is not valid.
    """
    table, where = read_tables(file if file is not None else "devices.toml")
    return {name: validate(DeviceSpec, {"name": name, **entry}, f"{where}: [{name}]") for name, entry in table.items()}


def known_device(name: str, devices: Mapping[str, DeviceSpec]) -> DeviceSpec | None:
    """Return the device of a short name, or of a name that torch reports; None where neither is known."""
    if name in devices:
        return devices[name]
    return next((device for device in devices.values() if device.is_called(name)), None)


def find_device(name: str, devices: Mapping[str, DeviceSpec]) -> DeviceSpec:
    """Return the device of a short name, or of a name that torch reports.

    Raises:
        HarnessError: there is none; the sentence holds a near miss.
    """
    found = known_device(name, devices)
    if found is None:
        raise HarnessError(f"there is no device '{name}' in devices.toml{near_miss(name, devices)}")
    return found
