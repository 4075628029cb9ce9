"""The device profile that the answers of a calibration amount to. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.calibration_log import PartResult, Reading
from harness.device_profile import AttentionConstants, DeviceProfile, Rates, SolverConstants

ATTENTION = {
    "attention without a mask": (False, False),
    "attention without a mask, grouped keys": (False, True),
    "attention with a mask": (True, False),
}
"""Parts, and whether there was a mask and grouped keys."""
RATES = {
    "copy on the device": "copy_bytes_per_second",
    "matrix products, bf16": "bf16_flops",
    "matrix products, fp32": "fp32_flops",
}
SOLVERS = {"SVD": "svd", "QR": "qr", "eigenvalues": "eigh"}


def profile_of(results: Sequence[PartResult]) -> DeviceProfile | None:
    """Return the profile of answers of one environment, newest of each part; None where nothing of it was measured.

    An answer that lacks a fact or a reading that the profile is made of adds nothing to it.
    """
    ok = {result.part: result for result in results if result.outcome == "ok"}
    rates = {field: rate.value for part, field in RATES.items() if part in ok and (rate := _rate(ok[part])) is not None}
    constants = _constants(ok)
    if not (rates or constants):
        return None
    newest = max(ok.values(), key=lambda result: result.started_at)
    environment = newest.environment
    if (torch := environment.version_of("torch")) is None:
        return None
    known: dict[str, Any] = {
        "device_name": environment.device_name,
        "device_type": environment.device_type,
        "compute_capability": ok["device"].known_facts.compute_capability if "device" in ok else None,
        "memory_bytes": max(0, environment.device_memory_bytes or 0) or None,
        "driver": environment.driver,
        "torch": torch,
        "sizes": newest.sizes,
        "measured_at": newest.started_at,
    }
    return DeviceProfile(**known, rates=Rates(**rates), **constants)


def _rate(result: PartResult) -> Reading | None:
    return next((reading for reading in result.readings if reading.value > 0), None)


def _constants(ok: dict[str, PartResult]) -> dict[str, Any]:
    facts = {part: result.known_facts for part, result in ok.items()}
    found: dict[str, Any] = {}
    if "context" in facts and facts["context"].context_bytes is not None:
        found["context_bytes"] = facts["context"].context_bytes
    if "cuBLAS workspaces" in ok and ok["cuBLAS workspaces"].environment.on_cuda:
        sizes = facts["cuBLAS workspaces"].forward_bytes, facts["cuBLAS workspaces"].backward_bytes
        if all(isinstance(size, int) for size in sizes):
            found["blas_workspace_bytes"] = sizes
    solvers = {kind: getattr(facts[part], kind) for part, kind in SOLVERS.items() if part in facts}
    solver = SolverConstants(**solvers)
    if solver != SolverConstants():
        found["solver"] = solver
    attention = [
        AttentionConstants(
            mask=mask, grouped=grouped, head_size=size, kernel=kernel, kept_bytes=kept, backward_bytes=backward
        )
        for part, (mask, grouped) in ATTENTION.items()
        if part in facts
        and (size := facts[part].head_size) is not None
        and (kernel := facts[part].kernel) is not None
        and (kept := facts[part].kept_bytes) is not None
        and (backward := facts[part].backward_bytes) is not None
    ]
    if attention:
        found["attention"] = tuple(attention)
    return found
