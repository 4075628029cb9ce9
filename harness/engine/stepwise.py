"""What a method's optimizer has to be, in the engine's loop."""

from __future__ import annotations

from harness.errors import HarnessError
from harness.method import Method, StepOptimizer
from harness.tensors.stepwise import Stepwise

__all__ = ["Stepwise", "refuse_other_optimizers"]


def refuse_other_optimizers(method: Method, optimizer: object) -> None:
    """Raise HarnessError where a method built something that cannot step single parameters or tell of its state."""
    if not isinstance(optimizer, StepOptimizer):
        raise HarnessError(
            f"the optimizer of method {type(method).__name__} is a {type(optimizer).__name__}, which lacks what "
            "harness.method.StepOptimizer declares: wrap one of torch.optim in harness.plugin.Stepwise"
        )
