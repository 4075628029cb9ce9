"""Real steps of every method on the device, beside the same steps on a CPU."""

from __future__ import annotations

import torch

from harness.calibration.bench import Bench, Found, Skip
from harness.calibration.tiny import STEPS, changed_by, differences, tiny_run
from harness.calibration_log import Reading
from harness.errors import HarnessError, NotInstalled

TOLERANCE = 1e-3
"""Largest relative difference of a loss to the CPU's, fp32. Chosen by us: rounding of a forward pass is below 1e-5, and
an update multiplies what rounding does to small gradients; a wrong update moves a loss by more than 1e-2."""


def steps_of(bench: Bench, label: str | None) -> Found:
    """Return how far the losses of a few steps of a method on the device are from those on a CPU.

    Raises:
        HarnessError: they are too far, or the steps left every weight as it was.
        Skip: the method needs what is not installed.
    """
    assert label is not None
    try:
        run = tiny_run(label, bench.device)
    except NotInstalled as error:
        raise Skip(str(error)) from error
    if not changed_by(run, run.take):
        raise HarnessError(f"{STEPS} steps of '{label}' changed no weight")
    expected = tiny_run(label, torch.device("cpu")).take()
    largest = differences(run.losses, expected)
    reading = Reading(name="difference to the CPU", value=largest, unit="relative", at_most=TOLERANCE)
    if not reading.reached:
        raise HarnessError(
            f"losses of '{label}' on the device are {largest:.2g} from the CPU's, more than {TOLERANCE:g}: "
            f"{run.losses} and {expected}"
        )
    return Found((reading,))
