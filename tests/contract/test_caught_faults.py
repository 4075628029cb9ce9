"""What the mutation check found untested: each test here catches a fault that all others let pass."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import pytest
import torch

from harness.data.batches import MicroBatch, TrainData
from harness.engine.training import TrainingLoop
from tests.records import TRAIN


def batches(run):
    """Yield one micro-batch a step, for ever."""
    step = 0
    while True:
        ids = run.batch(step)
        yield [MicroBatch(ids, ids, None, num_tokens=ids.numel(), num_trained_tokens=ids[:, 1:].numel())]
        step += 1


def loop_of(run):
    return TrainingLoop(run.model, run.method, run.optimizer, run.context)


@pytest.mark.parametrize("name", ["lisa", "owlore"])
def test_the_loops_hooks_update_blocks_that_were_frozen_when_it_was_made(tiny, name):
    weights = []
    for in_backward in (False, True):
        run = tiny.start(name, interval_steps=1, update_in_backward=in_backward)
        loop = loop_of(run)
        loop.run(batches(run), lambda done, loss: None)
        assert len(loop.log.ever_trainable_blocks) > 2
        weights.append(run.weights())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_loops_hooks_free_each_gradient_before_the_next_is_complete(tiny, monkeypatch):
    run = tiny.start("full", update_in_backward=True)
    loop, step, alive = loop_of(run), run.optimizer.step_parameters, []

    def watched(params):
        alive.append(sum(p.grad is not None for p in run.model.parameters()))
        step(params)

    monkeypatch.setattr(run.optimizer, "step_parameters", watched)
    loop.train_step(next(batches(run)))
    assert alive == [1] * len(list(run.model.parameters()))


def test_clipped_gradients_reach_the_optimizer_with_the_asked_norm(tiny, monkeypatch):
    run = tiny.start("full")
    run.context.train = tiny.train_settings(max_grad_norm=1e-3)
    loop, norms = loop_of(run), []

    def measured():
        norms.append(float(torch.stack([p.grad.norm() for p in run.model.parameters()]).norm()))

    monkeypatch.setattr(run.optimizer, "step", measured)
    before = loop.train_step(next(batches(run))).grad_norm
    assert before is not None and before > 0.1
    assert norms == [pytest.approx(1e-3, rel=1e-2)]


def test_weight_decay_leaves_frozen_blocks_alone(tiny):
    run = tiny.start("lisa", weight_decay=0.1, interval_steps=4)
    before = run.block_weights()
    run.steps(0, 4)
    active = run.method.proof()["draws"][-1]["blocks"]
    for index, block in enumerate(run.context.decoder.blocks):
        for old, p in zip(before[index], block.parameters(), strict=True):
            assert torch.equal(old, p) == (index not in active)


@dataclass(frozen=True)
class Row:
    instruction: str
    output: str = "x"
    input: str = ""
    turns: tuple[()] = ()
    place: str = ""


def test_every_epoch_has_an_order_of_its_own(tokenizer):
    data = TrainData([Row(f"{index:03d}") for index in range(12)], tokenizer, TRAIN, seed=1)
    rows = [tuple(ids) for (batch,) in islice(data.step_batches(), 12) for ids in batch.input_ids.tolist()]
    assert sorted(rows[:12]) == sorted(rows[12:]) and rows[:12] != rows[12:]
