"""The device profile that the answers of a calibration amount to. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.calibration_log import PartResult
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
SOLVERS = ("SVD", "QR", "eigenvalues")


def profile_of(results: Sequence[PartResult]) -> DeviceProfile | None:
    """Return the profile of answers of one environment, newest of each part; None where nothing of it was measured."""
    ok = {result.part: result for result in results if result.outcome == "ok"}
    rates = {field: ok[part].readings[0].value for part, field in RATES.items() if part in ok}
    constants = _constants(ok)
    if not (rates or constants):
        return None
    newest = max(ok.values(), key=lambda result: result.started_at)
    environment, facts = newest.environment, ok["device"].facts if "device" in ok else {}
    known: dict[str, Any] = {
        "device_name": environment.device_name,
        "device_type": environment.device_type,
        "compute_capability": facts.get("compute_capability"),
        "memory_bytes": environment.device_memory_bytes,
        "driver": environment.driver,
        "torch": environment.packages["torch"],
        "sizes": newest.sizes,
        "measured_at": newest.started_at,
    }
    return DeviceProfile(**known, rates=Rates(**rates), **constants)


def _constants(ok: dict[str, PartResult]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "context" in ok:
        found["context_bytes"] = ok["context"].facts["context_bytes"]
    if "cuBLAS workspaces" in ok and ok["cuBLAS workspaces"].environment.device_type == "cuda":
        facts = ok["cuBLAS workspaces"].facts
        found["blas_workspace_bytes"] = (facts["forward_bytes"], facts["backward_bytes"])
    solvers = {kind: value for part in SOLVERS if part in ok for kind, value in ok[part].facts.items()}
    if solvers:
        found["solver"] = SolverConstants.model_validate(solvers)
    attention = [
        AttentionConstants.model_validate({"mask": mask, "grouped": grouped, **ok[part].facts})
        for part, (mask, grouped) in ATTENTION.items()
        if part in ok
    ]
    if attention:
        found["attention"] = tuple(attention)
    return found
