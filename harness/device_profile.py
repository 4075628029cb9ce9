"""What was measured of one kind of device: constants that planning otherwise assumes, and rates that times are made of.

``harness calibrate`` writes a profile as TOML; ``harness plan --device-profile FILE`` takes it. Profiles that come with
the project lie in ``results/profiles`` and are found by the device's name. What was not measured is None, and planning
then keeps what it assumes.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from harness.printable import printable, printable_json
from harness.settings import ComputeCapability, Strict
from harness.toml_files import read_toml, validate

ASSUMED_CONTEXT_BYTES = 500_000_000
"""What the CUDA context takes beside torch's allocator where no profile says. Uncalibrated: 0.3 to 0.6 GB are usual."""


class AttentionConstants(Strict):
    """What attention needs beside its inputs, its output and their gradients, in bytes a head and token of a row."""

    mask: bool
    """Whether a mask was given."""
    grouped: bool
    """Whether keys and values have fewer heads than queries."""
    head_size: PositiveInt
    """Of each head; work spaces grow with it, so that the entry holds for no other."""
    kernel: str
    """The one that torch chose: flash, efficient, cudnn or math."""
    kept_bytes: NonNegativeFloat
    """Kept from the forward to the backward pass."""
    backward_bytes: NonNegativeFloat
    """At the peak of the backward pass."""


class SolverConstants(Strict):
    """Peak of a factorisation beside its input and its results, in matrices of the size of the input."""

    svd: NonNegativeFloat | None = None
    qr: NonNegativeFloat | None = None
    eigh: NonNegativeFloat | None = None


class Rates(Strict):
    """Medians of several measurements on random numbers."""

    copy_bytes_per_second: PositiveFloat | None = None
    """Read and written bytes of a copy on the device."""
    bf16_flops: PositiveFloat | None = None
    """Of a square matrix product, a multiply-add being two."""
    fp32_flops: PositiveFloat | None = None

    def flops(self, dtype: Literal["fp32", "bf16"]) -> float | None:
        """Return the rate of matrix products in a dtype, FLOP/s."""
        return self.bf16_flops if dtype == "bf16" else self.fp32_flops


class DeviceProfile(Strict):
    """A device profile."""

    device_name: str
    """As torch reports it."""
    device_type: Literal["cuda", "cpu"]
    compute_capability: ComputeCapability | None = None
    memory_bytes: PositiveInt | None = None
    driver: str | None = None
    torch: str
    """Version that it was measured with."""
    sizes: Literal["full", "smoke"]
    measured_at: AwareDatetime
    context_bytes: NonNegativeInt | None = None
    """Of the device's memory, what a process takes beside torch's allocator."""
    blas_workspace_bytes: tuple[NonNegativeInt, ...] | None = None
    """Of each cuBLAS handle of a training step."""
    rates: Rates = Rates()
    solver: SolverConstants = SolverConstants()
    attention: tuple[AttentionConstants, ...] = Field(default=())

    def attention_constants(self, *, mask: bool, grouped: bool, head_size: int) -> AttentionConstants | None:
        """Return the constants of one way to call attention, or None where it was not measured."""
        asked = mask, grouped, head_size
        return next((one for one in self.attention if (one.mask, one.grouped, one.head_size) == asked), None)


def read_profile(file: Path) -> DeviceProfile:
    """Return the profile in a file.

    Raises:
        HarnessError: it cannot be read or is not valid.
    """
    table, where = read_toml(file)
    return validate(DeviceProfile, table, f"{where}:")


@cache
def packaged_profiles() -> tuple[DeviceProfile, ...]:
    """Return the profiles that come with the project.

    Raises:
        HarnessError: one is not valid.
    """
    folder = Path(str(importlib.resources.files("harness.profiles")))
    return tuple(read_profile(file) for file in sorted(folder.glob("*.toml")))


def packaged_profile(device_name: str) -> DeviceProfile | None:
    """Return the profile that comes with the project for a device that torch reports by this name, or None."""
    found = (one for one in packaged_profiles() if one.device_name.casefold() == device_name.casefold())
    return next(found, None)


def profile_text(profile: DeviceProfile) -> str:
    """Return a profile as TOML."""
    values = profile.model_dump(mode="json", exclude_none=True)
    name = " ".join(printable(profile.device_name).split())
    lines = [f"# Measured by harness calibrate on {name}; see docs/calibration.md."]
    lines += _assignments({key: value for key, value in values.items() if not isinstance(value, dict)}, "attention")
    for table in ("rates", "solver"):
        if values[table]:
            lines += ["", f"[{table}]", *_assignments(values[table])]
    for entry in values["attention"]:
        lines += ["", "[[attention]]", *_assignments(entry)]
    return "\n".join(lines) + "\n"


def _assignments(values: dict[str, Any], *without: str) -> Iterator[str]:
    """Yield settings as TOML, whose strings take JSON's escapes but those of half characters."""
    for key, value in values.items():
        if key not in without:
            yield f"{key} = {printable_json(json.dumps(value, ensure_ascii=False))}"
