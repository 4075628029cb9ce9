"""What ``harness doctor`` finds: facts about a machine, and what needs action. Absent facts are None."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TorchDevice(_Part):
    """A CUDA device as torch sees it."""

    name: str
    capability: tuple[int, int]
    """Compute capability, major and minor."""
    memory_bytes: int
    free_bytes: int | None
    """None: it could not be asked."""
    bf16: bool
    """In hardware; emulation does not count."""
    supported: bool
    """Whether this build of torch holds code for the device."""


class TorchFacts(_Part):
    """What a process says that has imported torch."""

    version: str
    built_for: str
    """``CUDA 13.0``, ``ROCm 7.0`` or ``CPU``."""
    num_threads: int
    architectures: tuple[str, ...] = ()
    """GPU architectures that this build holds code for, as torch writes them."""
    devices: tuple[TorchDevice, ...] = ()
    warnings: tuple[str, ...] = ()
    """What torch said while it looked for devices."""


class SeenDevice(_Part):
    """A device as the driver's own tool sees it."""

    name: str
    driver: str
    memory_bytes: int | None
    used_bytes: int | None


class PlaceFacts(_Part):
    """A folder that is written to; it need not exist yet."""

    path: str
    exists: bool
    writable: bool
    free_bytes: int | None
    size_bytes: int | None = None
    """Of what lies in it; None: not asked."""
    locks: bool | None = None
    """Whether the file system keeps two processes apart by file locks; None: not asked, or not writable."""


class NetworkFacts(_Part):
    """Settings that decide what is reached and how; of a secret only whether it is set."""

    hub_offline: bool
    hub_endpoint_set: bool
    hub_token_set: bool
    proxies_set: tuple[str, ...]
    """Names of the variables."""
    pip_settings: tuple[str, ...]
    """Names of the variables."""


class SuiteFacts(_Part):
    """What a suite lacks on this machine."""

    name: str
    missing: tuple[str, ...]
    command: str
    """Brings what is missing."""


class Diagnosis(_Part):
    """Everything that ``harness doctor`` says."""

    harness: str
    commit: str | None
    """None outside a checkout."""
    dirty: bool | None
    python: str
    platform: str
    packages: dict[str, str | None]
    """Version by distribution; None: not installed."""
    torch: TorchFacts | None
    """None: torch is absent or cannot be imported."""
    torch_error: str | None
    nvidia: tuple[SeenDevice, ...] | None
    """None: ``nvidia-smi`` is not there or failed."""
    omp_num_threads: str | None
    cpus: int
    """That this process may use."""
    host_memory_bytes: int | None
    host_available_bytes: int | None
    cache: PlaceFacts
    results: PlaceFacts
    network: NetworkFacts
    suite: SuiteFacts | None = None
    actions: tuple[str, ...] = ()
    """One sentence for each thing that needs action."""
