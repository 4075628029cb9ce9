"""BAdam against the badam distribution: the same gradients through the real sampler, optimizer and loop, bit by bit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.catalogue.labels import load_labels
from harness.engine.loss import summed_loss
from harness.methods.badam import BadamConfig
from harness.tensors.dtypes import DTYPES
from harness.tensors.loading import load_model
from tests.unit.test_training import build

NUM_BLOCKS, PERIOD, ROUNDS = 4, 3, 2
STEPS = ROUNDS * NUM_BLOCKS * PERIOD - 1
"""Whole rounds, the first period one step short."""
ORDERS = {"reshuffle": "random", "tour": "ascending", "descending": "descending"}
"""Our laws and the reference's names of them."""
SEED = 1
"""Its rounds are 2 3 0 1 and 1 3 0 2: block 1 ends one and begins the next, and would go on with its state."""
BADAM = {"active_layers": 1, "interval_steps": PERIOD}


def ours(folder: Path, tokenizer: Any, settings: dict[str, Any], **train: Any) -> tuple[Any, Any]:
    """Return our loop, run to its end, and its data."""
    own = {**BADAM, "first_period_steps": PERIOD - 1, "master_weights": train["dtype"] == "bf16", **settings}
    loop, _, data = build("badam", folder, tokenizer, seed=SEED, settings=own, num_steps=STEPS, **train)
    loop.run(data.step_batches(), lambda done, loss: None)
    return loop, data


def rounds_of(loop: Any) -> list[list[int]]:
    blocks = [draw["blocks"][0] for draw in loop.method.proof()["draws"]]
    return [blocks[first : first + NUM_BLOCKS] for first in range(0, len(blocks), NUM_BLOCKS)]


def theirs(folder: Path, loop: Any, data: Any, order: str, rounds: list[list[int]], decay: float) -> Any:
    """Return the model that the reference has trained, at the learning rates of each step.

    Its own random orders are those of ours: it draws a permutation for every round and takes it from its end.
    """
    from badam import BlockOptimizer, block_optim

    train, rates = loop.context.train, loop.result().curve.learning_rate
    permutations: Iterator[torch.Tensor] = iter([torch.tensor(blocks[::-1]) for blocks in [*rounds, rounds[0]]])
    model = load_model(folder, train.dtype, torch.device("cpu"))
    base = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=decay, foreach=False)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that weights are fp32
        batches = [next(steps) for steps in [data.step_batches()] for _ in range(STEPS)]
        patch.setattr(block_optim, "gc", SimpleNamespace(collect=lambda: None))  # of this whole process, at each switch
        patch.setattr(torch, "randperm", lambda number: next(permutations))
        named = list(model.named_parameters())
        optimizer = BlockOptimizer(base, named, switch_block_every=PERIOD, switch_mode=order, verbose=0)
        for rate, micro_batches in zip(rates, batches, strict=True):
            trained = sum(batch.num_trained_tokens for batch in micro_batches)
            for batch in micro_batches:
                (summed_loss(model, loop.placed(batch)) / trained).backward()
            if train.max_grad_norm is not None:
                gradients = [p.grad for p in model.parameters() if p.grad is not None]
                # As clip_grad_norm_, whose norms of bf16 gradients are rounded to bf16: these are fp32.
                norms = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients])
                scale = (train.max_grad_norm / (torch.linalg.vector_norm(norms) + 1e-6)).clamp(max=1.0)
                for gradient in gradients:
                    gradient.mul_(scale)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
    return model


def compared(folder: Path, tokenizer: Any, law: str, decay: float, settings: dict[str, Any], **train: Any) -> list[str]:
    """Return the names of the weights that are not those of the reference, bit by bit."""
    loop, data = ours(folder, tokenizer, {"sampling": law, "weight_decay": decay, **settings}, **train)
    rounds = rounds_of(loop)
    assert len(rounds) == ROUNDS and all(sorted(blocks) == list(range(NUM_BLOCKS)) for blocks in rounds)
    if law == "reshuffle":
        assert any(before[-1] == after[0] for before, after in pairwise(rounds)), "no block follows itself"
    wanted = dict(theirs(folder, loop, data, ORDERS[law], rounds, decay).named_parameters())
    start = dict(load_model(folder, train["dtype"], torch.device("cpu")).named_parameters())
    moved = {name for name, p in wanted.items() if not torch.equal(p, start[name])}
    assert moved == {name for name in wanted if ".layers." in name}
    assert {p.dtype for p in wanted.values()} == {DTYPES[train["dtype"]]}
    return [name for name, p in loop.model.named_parameters() if not torch.equal(p, wanted[name])]


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("law", ORDERS)
def test_whole_rounds_end_in_the_reference_s_weights(
    law: str, dtype: str, decay: float, tiny_llama: Path, tokenizer: Any
) -> None:
    assert compared(tiny_llama, tokenizer, law, decay, {}, dtype=dtype) == []


def test_accumulation_clipping_and_warm_up_end_in_the_reference_s_weights(tiny_llama: Path, tokenizer: Any) -> None:
    training = {"gradient_accumulation_steps": 2, "batch_size": 1, "max_grad_norm": 0.1, "warmup_steps": 5}
    assert compared(tiny_llama, tokenizer, "reshuffle", 0.05, {}, dtype="bf16", **training) == []


def test_updates_in_the_backward_pass_end_in_the_reference_s_weights(tiny_llama: Path, tokenizer: Any) -> None:
    own = {"update_in_backward": True, "update_slice_elements": 1024}
    assert compared(tiny_llama, tokenizer, "reshuffle", 0.0, own, dtype="bf16") == []


def test_the_reference_s_first_period_is_one_step_short(tiny_llama: Path, tokenizer: Any) -> None:
    """With a first period like the others the weights differ: the test above can fail."""
    assert compared(tiny_llama, tokenizer, "tour", 0.0, {"first_period_steps": None}, dtype="bf16")


def test_the_reference_loses_the_weight_decay_of_groups(tiny_llama: Path) -> None:
    """As label and documentation say of it: a decay of 0 becomes the constructor's default, norms included."""
    from badam import BlockOptimizer

    model = load_model(tiny_llama, "bf16", torch.device("cpu"))
    base = torch.optim.AdamW([{"params": list(model.parameters()), "weight_decay": 0.0}], lr=1.0)
    BlockOptimizer(base, list(model.named_parameters()), switch_mode="ascending", verbose=0)
    decayed = [p for group in base.param_groups if group["weight_decay"] == 0.01 for p in group["params"]]
    assert {tuple(p.shape) for p in decayed} == {tuple(p.shape) for p in model.model.layers[0].parameters()}
    assert len(decayed) == len(list(model.model.layers[0].parameters()))


def test_after_many_periods_the_state_is_that_of_one_block(tiny_llama: Path, tokenizer: Any) -> None:
    loop, _ = ours(tiny_llama, tokenizer, {"sampling": "reshuffle"}, dtype="bf16")
    block = loop.context.decoder.blocks[loop.method.proof()["draws"][-1]["blocks"][0]]
    assert set(loop.optimizer.state) == set(block.parameters())
    wanted = sum(12 * p.numel() for p in block.parameters())  # two fp32 moments and an fp32 master
    assert loop.optimizer.state_bytes() == {"device": wanted, "host": 0}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sampling": "without_replacement"}, "takes blocks in turn: set sampling = 'reshuffle'"),
        ({"reset_each_period": False}, "begins every period without optimizer state: set reset_each_period = true"),
        ({"state_policy": "keep", "reset_each_period": False}, "begins every period without optimizer state"),
    ],
)
def test_what_is_no_block_coordinate_descent_is_refused(changes: dict[str, Any], sentence: str) -> None:
    values = {**load_labels()["badam"].values(), **changes}
    with pytest.raises(ValueError, match=sentence):
        BadamConfig.model_validate({key: value for key, value in values.items() if key in BadamConfig.model_fields})
