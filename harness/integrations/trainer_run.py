"""What was prepared for a Trainer, and whether that is still what the Trainer holds."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from harness.engine.context import EngineContext
from harness.errors import Refused
from harness.method import Method, StepOptimizer


@dataclass(frozen=True)
class TrainerRun:
    """A method on a model, with its optimizer and context."""

    label: str
    method: Method
    base: nn.Module
    """The model as it was given."""
    model: nn.Module
    """What is trained: the same, or its wrapper."""
    optimizer: StepOptimizer
    context: EngineContext
    dtypes: dict[torch.Tensor, torch.dtype] = field(init=False)
    """Of what the optimizer holds, as it was prepared."""

    def __post_init__(self) -> None:
        """Note what the optimizer holds."""
        object.__setattr__(self, "dtypes", {p: p.dtype for p in self.parameters()})

    def parameters(self) -> list[torch.Tensor]:
        """Return all that may ever be trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def device(self) -> torch.device:
        """Return where the model lies."""
        return next(self.model.parameters()).device

    def check_model(self, model: nn.Module | None) -> None:
        """Refuse a model that is not the prepared one, or no longer.

        Raises:
            Refused: and what became of it.
        """
        if model is not self.model:
            raise Refused(
                f"the Trainer has another model than the one that label '{self.label}' was prepared on: give it "
                "model=prepared.model"
            )
        names = {id(p): name for name, p in self.model.named_parameters()}
        if any(id(p) not in names for p in self.parameters()):
            raise Refused(
                "parameters of the model were replaced after prepare, so the optimizer would train what the model no "
                "longer has: add tokens, resize embeddings and clone chat templates before"
            )
        for p, dtype in self.dtypes.items():
            if p.dtype != dtype:
                now, before = (str(one).removeprefix("torch.") for one in (p.dtype, dtype))
                raise Refused(
                    f"{names[id(p)]} was cast from {before} to {now} after prepare, as TRL does with adapters on 4-bit "
                    "weights: prepare it in that dtype (settings={'adapter_dtype': 'bf16'}), or leave it as it was"
                )

    def check_optimizer(self, optimizer: object) -> None:
        """Refuse a Trainer that steps another optimizer.

        Raises:
            Refused: and how to give it the method's.
        """
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper holds it
        if inner is not self.optimizer:
            what = "an optimizer of its own" if inner is None else f"a {type(inner).__name__} of its own"
            raise Refused(
                f"the Trainer steps {what}, so label '{self.label}' would update nothing: give it "
                "optimizers=(prepared.optimizer, None)"
            )
