"""What the device is, and how fast it copies and multiplies."""

from __future__ import annotations

from typing import cast

import torch

from harness.calibration.bench import Bench, Found, Precision, Skip
from harness.calibration_log import Reading
from harness.catalogue.devices import known_device, load_devices
from harness.engine.environment import describe_environment
from harness.tensors.dtypes import DTYPES


def device(bench: Bench, _: str | None) -> Found:
    """Return what the device is called and how much memory it has."""
    environment = describe_environment()
    where = f"{environment.device_name}, torch {torch.__version__}"
    if not bench.cuda:
        return Found(sentence=f"{where}: the CPU is the device, so CUDA constants and peaks are not measured")
    free, total = torch.cuda.mem_get_info(bench.device)
    sheet = known_device(environment.device_name, load_devices())
    reading = Reading(
        name="memory",
        value=total,
        unit="bytes",
        expected=None if sheet is None else sheet.memory_bytes,
        expected_by=None if sheet is None else "data sheet",
    )
    busy = "" if (busily := environment.not_idle()) is None else f"; {busily}"
    return Found(
        (reading,),
        f"{where}, CUDA {torch.version.cuda}, driver: {environment.driver or 'not known'}{busy}",
        {"compute_capability": environment.compute_capability, "memory_bytes": total, "free_bytes": free},
    )


def copy(bench: Bench, _: str | None) -> Found:
    """Return the bandwidth of a copy on the device: bytes read and written, over the time."""
    size = bench.pick(1 << 31, 1 << 23)
    source = bench.random(size // 4)
    target = torch.empty_like(source)
    seconds = bench.seconds_of(lambda: target.copy_(source))
    assert torch.equal(source, target)
    return Found((Reading(name="copy bandwidth", value=2 * size / seconds, unit="bytes/s"),))


def matrix_products(bench: Bench, precision: str | None) -> Found:
    """Return the rate of square matrix products, a multiply-add being two operations; TF32 stays off for fp32."""
    dtype = cast(Precision, precision)
    if bench.cuda and dtype == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise Skip("the device has no bf16")
    side = bench.pick(8192, 128)
    left, right = (bench.random(side, side, dtype=DTYPES[dtype], seed=seed) for seed in (1, 2))
    out = torch.empty_like(left)
    seconds = bench.seconds_of(lambda: torch.mm(left, right, out=out))
    sheet = known_device(describe_environment().device_name, load_devices())
    peak = None if sheet is None else sheet.peak_flops(dtype)
    return Found(
        (
            Reading(
                name=f"matrix rate, {dtype}",
                value=2 * side**3 / seconds,
                unit="FLOP/s",
                expected=peak,
                expected_by=None if peak is None else "data sheet",
            ),
        )
    )
