"""What planning assumes of CUDA's libraries, measured: context, allocator, cuBLAS and cuSOLVER work space.

On a CPU the same code asks the CPU's allocator, which shows that it measures and not what CUDA needs.
"""

from __future__ import annotations

import random

import torch
from torch import nn

from harness.calibration.bench import Bench, Found, Skip
from harness.calibration_log import Reading
from harness.device_profile import ASSUMED_CONTEXT_BYTES
from harness.engine.environment import describe_environment
from harness.errors import HarnessError
from harness.planning.allocator import CachingAllocator
from harness.planning.cuda import blas_workspaces as assumed_blas_workspaces
from harness.planning.cuda import solver_bytes
from harness.tensors.optimizer_state import storage_bytes

FACTORISATIONS = {
    "svd": lambda matrix: torch.linalg.svd(matrix, full_matrices=False),
    "qr": torch.linalg.qr,
    "eigh": lambda matrix: torch.linalg.eigh(matrix @ matrix.t()),
}
PLANNER = "planner"


def context(bench: Bench, _: str | None) -> Found:
    """Return what a process takes of the device's memory beside torch's allocator: context and loaded kernels.

    It is the device's used memory after a first kernel, less what was used before this process came, both by NVML,
    whose figure holds what the driver keeps for itself and CUDA's does not, and less what the allocator reserved.
    Without NVML it is all that CUDA says is used, others' memory among it.

    Raises:
        HarnessError: others gave memory back meanwhile.
    """
    counters = bench.counters()
    before = _used_by_nvml(bench.device)
    bench.random(1024, 1024) @ bench.random(1024, 1024)
    counters.synchronize()
    after = _used_by_nvml(bench.device)
    free, total = torch.cuda.mem_get_info(bench.device)
    all_used = total - free if before is None or after is None else after - before
    used = all_used - counters.reserved_bytes()
    if used < 0:
        raise HarnessError(
            f"{-used} bytes less are used than before: other processes gave memory back meanwhile; ask again when the "
            "device is idle"
        )
    reading = Reading(name="context", value=used, unit="bytes", expected=ASSUMED_CONTEXT_BYTES, expected_by=PLANNER)
    sentence = None if before is not None else "without NVML: what the driver and other processes use is in it"
    return Found((reading,), sentence, {"context_bytes": used})


def allocator(bench: Bench, _: str | None) -> Found:
    """Return the allocator's peaks over a random sequence of allocations beside those of the planner's replay.

    Raises:
        Skip: the device is a CPU.
    """
    counters, replay = bench.counters(), CachingAllocator()
    torch.cuda.empty_cache()
    draws = random.Random(1)
    counters.reset_peaks()
    allocated, reserved = counters.allocated_bytes(), counters.reserved_bytes()
    held: dict[int, torch.Tensor] = {}
    for key in range(400):
        size = int(2 ** draws.uniform(5, 28))
        held[key] = torch.empty(size, dtype=torch.uint8, device=bench.device)
        replay.allocate(key, size)
        if draws.random() < 0.6:
            gone = draws.choice(list(held))
            del held[gone]
            replay.free(gone)
    peaks = counters.peaks()
    return Found(
        tuple(
            Reading(name=name, value=value, unit="bytes", expected=expected, expected_by=PLANNER)
            for name, value, expected in (
                ("allocated peak of 400 blocks", peaks.allocated_bytes - allocated, replay.peak_allocated),
                ("reserved peak of 400 blocks", peaks.reserved_bytes - reserved, replay.peak_reserved),
            )
        )
    )


def blas_workspaces(bench: Bench, _: str | None) -> Found:
    """Return what stays allocated after matrix products of a forward and a backward pass: cuBLAS's work space.

    Each thread that multiplies has a handle and a work space of its own: the caller's, and autograd's.
    """
    dtype = torch.bfloat16 if not bench.cuda or torch.cuda.is_bf16_supported(including_emulation=False) else None
    layer = nn.Linear(512, 512, bias=False, device=bench.device, dtype=dtype)
    x = bench.random(256, 512, dtype=layer.weight.dtype)
    with bench.watching() as forward, torch.no_grad():
        layer(x)
    with bench.watching() as backward:
        layer(x).sum().backward()
        layer.weight.grad = None
    sizes = [max(0, forward.left_bytes), max(0, backward.left_bytes)]
    expected = sum(assumed_blas_workspaces(describe_environment().compute_capability)) if bench.cuda else None
    reading = Reading(
        name="cuBLAS workspaces",
        value=sum(sizes),
        unit="bytes",
        expected=expected,
        expected_by=None if expected is None else PLANNER,
    )
    return Found((reading,), None, {"forward_bytes": sizes[0], "backward_bytes": sizes[1]})


def solver(bench: Bench, kind: str | None) -> Found:
    """Return the peak of a factorisation beside its input and its results, in matrices of the size of the input.

    Raises:
        Skip: the device has no solver for it.
    """
    assert kind is not None
    rows = bench.pick(2048 if kind == "svd" else 4096, 96)  # an exact SVD of 4096 rows may take half a minute
    columns = {"svd": rows, "qr": bench.pick(160, 24), "eigh": bench.pick(160, 24)}[kind]
    G = bench.random(rows, columns) if kind != "eigh" else bench.random(columns, columns)
    factorise = FACTORISATIONS[kind]
    try:
        factorise(bench.random(32, 32))  # handles and the work spaces that stay
    except NotImplementedError as error:
        raise Skip(f"the device has no solver for it: {error}") from error
    with bench.watching() as seen:
        results = factorise(G)
        made = storage_bytes(results) + (storage_bytes([G]) if kind == "eigh" else 0)
    extra = max(0, seen.peak_bytes - made) / storage_bytes([G])
    expected = solver_bytes(kind, G.shape[0], G.shape[1], G.element_size()) / storage_bytes([G]) if bench.cuda else None
    reading = Reading(
        name=f"{kind} of {G.shape[0]} x {G.shape[1]}, work space",
        value=extra,
        unit="matrices",
        expected=expected,
        expected_by=None if expected is None else PLANNER,
    )
    return Found((reading,), None, {kind: extra})


def _used_by_nvml(device: torch.device) -> int | None:
    """Return the used memory of a device by NVML, which makes no context; None where it is not installed."""
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")).used)
    except ImportError:
        return None
    except pynvml.NVMLError:
        return None
