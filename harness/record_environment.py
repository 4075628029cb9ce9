"""Where a run took place, as a record says it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from harness.record_part import Part
from harness.settings import ComputeCapability
from harness.spec import identity

if TYPE_CHECKING:
    from harness.record_training import Prediction


class Environment(Part):
    """Where a run took place."""

    device_type: Literal["cpu", "cuda"]
    device_name: str
    compute_capability: ComputeCapability | None = None
    """Of an NVIDIA device; None on others, and in records older than the field."""
    device_memory_bytes: int | None
    driver: str | None
    num_threads: int
    """CPU threads of torch, of each rank: results on a CPU depend on them."""
    num_ranks: int = 1
    """Devices of this kind that shared the run, a process for each; on a CPU processes."""
    platform: str
    python: str
    packages: dict[str, str]
    """Versions of harness, torch, transformers, peft, lm-eval and what else can move a number."""
    source_checksum: str
    """SHA-256 over the harness's own source, so that an installed wheel and a checkout agree: over the modules that a
    run can execute; in records of schema version 5 and before over the whole package."""
    training_checksum: str | None = None
    """The same without what evaluates; None in records older than the field."""
    commit: str | None = None
    """Git commit of the checkout the harness ran from; None outside a checkout."""
    dirty: bool | None = None
    device_busy: str | None = None
    """What else used the device at the start; None: nothing seen, or nothing to ask."""

    @property
    def environment_id(self) -> str:
        """Return the identity of what can move a number."""
        rest = {"device_memory_bytes": self.device_memory_bytes, "packages": self.packages}
        return identity(self.told_by_name() | rest)

    @property
    def training_id(self) -> str:
        """Return the identity of what can move trained weights: without lm-eval and the code that evaluates."""
        if self.training_checksum is None:
            return self.environment_id
        packages = {name: version for name, version in self.packages.items() if name != "lm-eval"}
        rest = {"device_memory_bytes": self.device_memory_bytes, "packages": packages}
        return identity(self.told_by_name() | rest | {"source_checksum": self.training_checksum})

    def told_by_name(self) -> dict[str, Any]:
        """Return what can move a number beside the packages and the size of the memory, as JSON.

        The commit is left out, as the source checksum stands for it; so is the compute capability, as the device's name
        does and older records lack it.
        """
        of_another_kind = {"packages", "device_memory_bytes"}
        moves_none = {"commit", "dirty", "device_busy", "platform", "compute_capability", "training_checksum"}
        alone = {"num_ranks"} if self.num_ranks == 1 else set()  # records older than the field are of one
        return self.model_dump(mode="json", exclude=of_another_kind | moves_none | alone)

    def of_ranks(self, num_ranks: int) -> Environment:
        """Return the environment of a run on so many devices such as this one."""
        return self.model_copy(update={"num_ranks": num_ranks})

    @property
    def on_cuda(self) -> bool:
        """Return whether the device is one of CUDA."""
        return self.device_type == "cuda"

    @property
    def gpu_name(self) -> str | None:
        """Return what torch calls the CUDA device; None on a CPU."""
        return self.device_name if self.on_cuda else None

    @property
    def devices(self) -> str:
        """Return the name of the device, with how many of them shared a run where it is more than one."""
        return self.device_name if self.num_ranks == 1 else f"{self.num_ranks} x {self.device_name}"

    @property
    def device(self) -> str:
        """Return the device as far as times depend on it: of a CPU with the threads."""
        return self.devices + ("" if self.on_cuda else f", {self.num_threads} threads")

    @property
    def device_text(self) -> str:
        """Return kind and name of the device, and how many there were."""
        return f"{self.device_type}: {self.devices}"

    def has_room_for(self, size: int) -> bool:
        """Return whether so many bytes fit on the device; where its memory is not known they do."""
        return self.device_memory_bytes is None or size <= self.device_memory_bytes

    def holds(self, prediction: Prediction) -> bool:
        """Return whether a predicted peak fits on the device."""
        return self.has_room_for(prediction.peak_bytes)

    def not_idle(self, what: str = "it") -> str | None:
        """Return that the device is in use by others, and how much of it; None where nothing was seen."""
        return f"{what} is not idle: {self.device_busy}" if self.device_busy else None

    def version_of(self, package: str) -> str | None:
        """Return a package's version; None where it is not installed."""
        return self.packages.get(package)

    def has_source(self, checksum: str) -> bool:
        """Return whether its harness is of the same source."""
        return self.source_checksum == checksum

    @property
    def source(self) -> str:
        """Return the first digits of the source checksum, by which sentences tell a source."""
        return self.source_checksum[:12]
