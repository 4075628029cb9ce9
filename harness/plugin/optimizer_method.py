"""A method that is an optimizer: a subclass names one of ``torch.optim``, or one written like it. No torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from harness.declaration import Declaration
from harness.errors import Refused
from harness.method import Method, MethodConfig, RunContext, StepOptimizer
from harness.settings import TrainSettings

if TYPE_CHECKING:
    import torch
    from torch import nn


class OptimizerMethod(Method):
    """Trains the parameters that :meth:`trains_parameter` says, all by default, with :meth:`optimizer`."""

    @classmethod
    def check(cls, config: MethodConfig, train: TrainSettings | None) -> None:
        """Refuse clipping that could not be done: with updates in the backward pass no global norm is known."""
        clips = train is not None and train.max_grad_norm is not None
        if clips and config.update_in_backward and not config.two_pass_clipping:
            raise Refused(
                f"max_grad_norm = {train.max_grad_norm if train else None} cannot be applied with update_in_backward = "
                "true: leave one of them out, or set two_pass_clipping = true"
            )

    def trains_parameter(self, name: str, parameter: torch.Tensor) -> bool:
        """Return whether a parameter of the base model is trained; all others are frozen for the whole run."""
        return True

    @abstractmethod
    def optimizer(
        self, named: Sequence[tuple[str, nn.Parameter]], learning_rate: float, context: RunContext
    ) -> torch.optim.Optimizer | Sequence[torch.optim.Optimizer]:
        """Return the optimizer over trained parameters, or several that divide them.

        Args:
            named: Name and parameter of all that are trained, each once, in the model's order.
            learning_rate: The suite's, which its schedule moves; a group with another one keeps its ratio to it.
            context: What the engine offers.
        """

    def prepare(self, model: nn.Module, context: RunContext) -> nn.Module:
        """Let be trained what is to be.

        Raises:
            Refused: that is nothing.
        """
        trained = [p.requires_grad_(self.trains_parameter(name, p)) for name, p in model.named_parameters()]
        if not any(p.requires_grad for p in trained):
            raise Refused(f"method {type(self).__name__} trains no parameter of this model")
        return model

    def build_optimizer(self, model: nn.Module, context: RunContext) -> StepOptimizer:
        """Return the optimizer, stepwise.

        Raises:
            Refused: it does not take these parameters or settings, or cannot be stepped, counted and saved.
        """
        import torch

        from harness.tensors.stepwise import Stepwise, answering_reads

        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        try:
            with answering_reads(p for _, p in named):
                built = self.optimizer(named, context.train.learning_rate, context)
        except (ValueError, AssertionError) as error:
            said = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise Refused(f"the optimizer of method {type(self).__name__} cannot be made: {said}") from error
        stepwise = Stepwise(*([built] if isinstance(built, torch.optim.Optimizer) else built))
        return cast(StepOptimizer, stepwise)  # whose groups and state are the wrapped one's, read and changed in place

    def declare(self, model: nn.Module, context: RunContext) -> Declaration | None:
        """Return None: what state an optimizer keeps is not known from shapes, so that no proof is held against it."""
        return None
