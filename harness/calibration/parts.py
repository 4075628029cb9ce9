"""The parts of a calibration, most valuable first. Imports no torch, so that the parent can list them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.calibration_log import Group
from harness.catalogue.labels import load_labels
from harness.method import METHODS

if TYPE_CHECKING:
    from harness.calibration.bench import Bench, Found


@dataclass(frozen=True)
class Part:
    """One question to a device."""

    name: str
    group: Group
    where: str
    """Module below ``harness.calibration`` and function in it: ``rates.copy``."""
    argument: str | None = None
    alone: bool = False
    """It needs a process of its own, or leaves one behind that is full."""
    untouched: bool = False
    """The process must not have looked at the device before."""
    shared: bool = False
    """A process on each of several devices takes part."""

    def function(self) -> Callable[[Bench, str | None], Found]:
        """Return what answers it; imports torch."""
        module, _, name = self.where.partition(".")
        found: Any = getattr(importlib.import_module(f"harness.calibration.{module}"), name)
        return found  # type: ignore[no-any-return]


def method_labels() -> dict[str, str]:
    """Return which label shows each registered method that trains: all of methods.toml, and plug-ins by their name."""
    labels = {label: entry.method for label, entry in load_labels().items()}
    labels |= {name: name for name in METHODS.names() if name not in labels.values()}
    return {label: method for label, method in labels.items() if METHODS.get(method).trains}


def all_parts(num_devices: int = 1) -> tuple[Part, ...]:
    """Return every part but the ladder's, in order.

    Args:
        num_devices: How many share what is shared; with one, nothing is.
    """
    return (
        Part("device", "checks", "rates.device"),
        Part("copy on the device", "checks", "rates.copy"),
        Part("matrix products, bf16", "checks", "rates.matrix_products", "bf16"),
        Part("matrix products, fp32", "checks", "rates.matrix_products", "fp32"),
        *(Part(f"steps of {label}", "checks", "methods.steps_of", label) for label in method_labels()),
        Part("update in backward", "checks", "features.update_in_backward"),
        Part("two-pass clipping", "checks", "features.two_pass_clipping"),
        Part("checkpoints on the host", "checks", "features.checkpoints_on_the_host"),
        Part("states on the host", "checks", "features.states_on_the_host"),
        Part("states that come over for updates", "checks", "features.states_streamed"),
        Part("stochastic rounding", "checks", "features.stochastic_rounding"),
        Part("exact projector", "checks", "features.projector", "svd"),
        Part("randomized projector", "checks", "features.projector", "randomized"),
        Part("checkpoint and resume", "checks", "features.checkpoint_and_resume"),
        Part("out of memory", "checks", "features.out_of_memory"),
        *(_shared_parts(num_devices) if num_devices > 1 else ()),
        Part("context", "constants", "constants.context", alone=True, untouched=True),
        Part("cuBLAS workspaces", "constants", "constants.blas_workspaces", alone=True),
        Part("allocator", "constants", "constants.allocator"),
        Part("attention without a mask", "constants", "attention.needs", "plain"),
        Part("attention without a mask, grouped keys", "constants", "attention.needs", "grouped"),
        Part("attention with a mask", "constants", "attention.needs", "mask"),
        Part("QR", "constants", "constants.solver", "qr"),
        Part("eigenvalues", "constants", "constants.solver", "eigh"),
        Part("SVD", "constants", "constants.solver", "svd"),
        Part("log-likelihoods", "evaluation", "evaluation.log_likelihoods", alone=True),
        Part("generation", "evaluation", "evaluation.generation", alone=True),
    )


def _shared_parts(num_devices: int) -> Iterator[Part]:
    """Yield the parts that several devices share; how many is in their names, as each number has its own answers."""
    for what, where, kind, alone in (
        ("every weight", "steps_of", "every weight", False),
        ("adapters", "steps_of", "adapters", False),
        ("drawn blocks", "steps_of", "drawn blocks", False),
        ("projections, usual side", "steps_of", "usual side", False),
        ("projections, other side", "steps_of", "other side", False),
        ("gradients in bf16", "gradients_in_bf16", None, False),
        ("memory", "memory", None, True),
    ):
        yield Part(f"{what}, {num_devices} devices", "sharded", f"sharded.{where}", kind, alone=alone, shared=True)
