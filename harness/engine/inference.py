"""A forward pass without gradients that a method asks for as a step begins: the loss of rows of its own.

It is a moment of the step, ``inference``, in its time and memory, on a real device as in planning.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from harness.data.batches import MicroBatch
from harness.engine.loss import loss_function
from harness.engine.stepping import Diverged, StepWatch
from harness.method import RunContext


@torch.no_grad()
def inference_loss(model: nn.Module, batch: MicroBatch, context: RunContext, watch: StepWatch) -> float:
    """Return the mean loss of rows in evaluation mode, nats; each module's mode is as before after it.

    Args:
        model: As it is trained.
        batch: On its device.
        context: Of the run.
        watch: Told that the pass begins, and that ``resample`` goes on.

    Raises:
        Diverged: the loss is NaN or infinite.
    """
    modes = [(module, module.training) for module in model.modules()]
    watch.moment("inference")
    model.eval()
    try:
        value = context.read_scalar(loss_function(model, context)(model, batch) / batch.num_trained_tokens)
    finally:
        for module, training in modes:
            module.training = training
        watch.moment("resample")
    if not math.isfinite(value):
        raise Diverged(f"the loss is {value} in a forward pass of the method's own, before the step")
    return value
