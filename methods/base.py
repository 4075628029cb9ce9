"""The base model as it is: not trained, scored like every other.

No paper and no reference implementation: it is the row that the others are compared with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import Refused
from harness.method import METHODS, Method, MethodConfig, RunContext, StepOptimizer
from harness.settings import TrainSettings

if TYPE_CHECKING:
    from torch import nn


@METHODS.register("base")
class Base(Method):
    """The untouched model."""

    summary = "the base model, not trained"
    trains = False

    @classmethod
    def check(cls, config: MethodConfig, train: TrainSettings | None) -> None:
        """Refuse updates in the backward pass: there is none."""
        if config.update_in_backward:
            raise Refused("method 'base' does not train, so update_in_backward = true means nothing: set it to false")

    def prepare(self, model: nn.Module, context: RunContext) -> nn.Module:
        """Freeze everything."""
        return model.requires_grad_(False)

    def build_optimizer(self, model: nn.Module, context: RunContext) -> StepOptimizer:
        """Raise Refused: there is nothing to optimise."""
        raise Refused("method 'base' does not train: it has no optimizer")
