"""Rows padded on the right, with their mask and without: the same losses and gradients for every label."""

from __future__ import annotations

import pytest
import torch

from harness.data.batches import MicroBatch, collate
from harness.data.examples import Example
from harness.engine import training
from harness.engine.loss import loss_function
from harness.engine.training import TrainingLoop, mean_loss

LENGTHS = (24, 5, 9, 17)
"""Of the rows; the window of the tiny Mistral is 16."""


def padded_batch(seed: int = 3) -> MicroBatch:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 64, (length,), generator=generator).tolist() for length in LENGTHS]
    return collate([Example(tuple(ids), (False, *(True for _ in ids[1:]))) for ids in rows], pad_id=63)


def gradients_of(run, batch):
    """Return the loss of a batch, divided by its tokens, and the gradient of every trained parameter."""
    with run.context.seed_globally("forward/0"):
        loss = loss_function(run.model, run.context)(run.model, batch) / batch.num_trained_tokens
        loss.backward()
    found = {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None}
    for parameter in run.model.parameters():
        parameter.grad = None
    return float(loss.detach()), found


@pytest.mark.parametrize("columns", [None, 10], ids=["plain loss", "sliced loss"])
def test_losses_and_gradients_are_those_under_a_mask(tiny, trained, architecture, columns):
    run = tiny.start(trained, architecture)
    run.context.train = tiny.train_settings(loss_chunk_columns=columns)
    run.method.on_step_begin(0, run.optimizer)
    run.model.train()
    batch = padded_batch()
    assert batch.attention_mask is not None
    under_mask, wanted = gradients_of(run, batch)
    loop = TrainingLoop(run.model, run.method, run.optimizer, run.context)
    placed = loop.placed(batch)
    assert placed.attention_mask is None
    assert placed.num_tokens == batch.num_tokens == sum(LENGTHS)
    loss, found = gradients_of(run, placed)
    assert loss == pytest.approx(under_mask, rel=1e-6)
    assert found.keys() == wanted.keys() and found
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-5 * largest)


def test_the_loop_and_the_held_out_loss_give_the_model_no_mask(tiny, trained, monkeypatch):
    seen: list[torch.Tensor | None] = []

    def trained_losses(masked: bool) -> tuple[list[float], float]:
        monkeypatch.setattr(training, "needs_padding_mask", lambda model: masked or real(model))
        run = tiny.start(trained)
        run.model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
        )
        run.context.num_steps = 3
        loop = TrainingLoop(run.model, run.method, run.optimizer, run.context)
        loop.run(iter([[padded_batch(step), padded_batch(step + 9)] for step in range(3)]), lambda step, loss: None)
        assert loop.result().curve.tokens == (2 * sum(LENGTHS),) * 3
        return list(loop.result().curve.loss), mean_loss(run.model, [padded_batch(20)], run.context)[0]

    real = training.needs_padding_mask
    without, held_out = trained_losses(masked=False)
    assert seen and all(mask is None for mask in seen)
    seen.clear()
    with_mask, held_out_with_mask = trained_losses(masked=True)
    assert seen and all(mask is not None for mask in seen)
    assert without == pytest.approx(with_mask, rel=1e-4)  # rounding, three steps of AdamW later
    assert held_out == pytest.approx(held_out_with_mask, rel=1e-4)
