"""What a method of one's own is written with: the one stable import of a plug-in (docs/adding-a-method.md).

Nothing here imports torch, so that listing and checking methods works without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.declaration import (
    Declaration,
    DeclaredPart,
    DeclaredProjection,
    DeclaredSampling,
)
from harness.errors import HarnessError, Refused
from harness.method import (
    BlockLaw,
    BlockScoreRequest,
    Decoder,
    GradientNorms,
    InferenceRequest,
    Method,
    MethodConfig,
    ProbeRequest,
    RunContext,
    StateBytes,
    StepOptimizer,
)
from harness.plugin.optimizer_method import OptimizerMethod
from harness.settings import Later, NamesFile, TrainSettings

if TYPE_CHECKING:
    from harness.tensors.stepwise import Stepwise

__all__ = [
    "BlockLaw",
    "BlockScoreRequest",
    "Declaration",
    "DeclaredPart",
    "DeclaredProjection",
    "DeclaredSampling",
    "Decoder",
    "GradientNorms",
    "HarnessError",
    "InferenceRequest",
    "Later",
    "Method",
    "MethodConfig",
    "NamesFile",
    "OptimizerMethod",
    "ProbeRequest",
    "Refused",
    "RunContext",
    "StateBytes",
    "StepOptimizer",
    "Stepwise",
    "TrainSettings",
]


def __getattr__(name: str) -> Any:
    """Return ``Stepwise``, which imports torch, when it is asked for."""
    if name == "Stepwise":
        from harness.tensors.stepwise import Stepwise

        return Stepwise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
