"""What the training loop costs beside the training: label ``full`` in the harness's loop against a bare torch loop.

The bare loop does the same work on equal weights and the same batches: forward, summed cross-entropy, backward,
clipping, update, zero_grad; equal losses, bit by bit, show it. Its optimizer is the harness's own AdamW, so that the
ratio is the loop's alone; a bare loop with ``torch.optim.AdamW(foreach=False)`` is timed beside it. Steps of all three
alternate in one process; those that the tracker follows, which no step time holds, are left out. On a CPU the clock is
the process's own CPU time, which other programs on the machine disturb less than the time of day.

What the loop does of its own grows with the number of parameters and blocks, not with their sizes. So a model with
many blocks and hardly any work in them shows its milliseconds where the ratio on a real step drowns in noise.

    OMP_NUM_THREADS=1 pytest benchmarks/test_loop_overhead.py -s

``HARNESS_BENCH_STEPS`` sets the timed steps of each loop (default 40).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from harness.catalogue.labels import load_labels
from harness.catalogue.models import BaseModelSpec
from harness.data.batches import IGNORED, MicroBatch
from harness.engine.context import EngineContext
from harness.engine.run_log import WARMUP_STEPS
from harness.engine.training import TrainingLoop
from harness.method import METHODS
from harness.settings import TrainSettings
from harness.tensors.decoder import find_decoder

STEPS = int(os.environ.get("HARNESS_BENCH_STEPS", "40"))
ROWS, VOCABULARY = 4, 4096
STEP_SECONDS = 0.3
"""What a step must take at least for its hundredth to be told."""
TARGET = 0.01
"""Of a step's time."""


@dataclass(frozen=True)
class Shape:
    """Size of the model and length of its rows."""

    hidden_size: int
    num_blocks: int
    length: int


REAL = Shape(hidden_size=384, num_blocks=12, length=128)
EMPTY = Shape(hidden_size=8, num_blocks=32, length=2)
"""As many blocks and parameters as LLaMA-2-7B, and next to no work."""


def settings(shape: Shape, steps: int) -> TrainSettings:
    return TrainSettings(
        data="random",
        prompt="plain",
        loss_on="all",
        packing=True,
        sequence_length=shape.length,
        batch_size=ROWS,
        num_steps=steps + WARMUP_STEPS,
        learning_rate=1e-4,
        lr_scheduler="constant",
        max_grad_norm=1.0,
        dtype="fp32",
    )


def new_model(shape: Shape, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY if shape is REAL else 16,
        hidden_size=shape.hidden_size,
        intermediate_size=8 * shape.hidden_size // 3,
        num_hidden_layers=shape.num_blocks,
        num_attention_heads=shape.hidden_size // min(64, shape.hidden_size),
        max_position_embeddings=shape.length,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).to(device).train()


def new_batches(shape: Shape, device: torch.device) -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(1)
    size = (ROWS, shape.length)
    drawn = [torch.randint(0, 16, size, generator=generator).to(device) for _ in range(8)]
    return [MicroBatch(ids, ids, None, ROWS * shape.length, ROWS * (shape.length - 1)) for ids in drawn]


def with_method(model: nn.Module, train: TrainSettings) -> tuple[Any, Any, EngineContext]:
    """Return method, optimizer and context of label ``full``."""
    entry = load_labels()["full"]
    method_class = METHODS.get(entry.method)
    values = {key: value for key, value in entry.values().items() if key in method_class.Config.model_fields}
    method = method_class(method_class.Config.model_validate(values))
    spec = BaseModelSpec(name="random", architecture="LlamaForCausalLM", packaged="random")
    assert train.num_steps is not None
    context = EngineContext(seed=1, num_steps=train.num_steps, train=train, decoder=find_decoder(model, spec))
    method.prepare(model, context)
    return method, method.build_optimizer(model, context), context


def bare_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: MicroBatch) -> float:
    """Make one step as a torch user writes it; return the loss."""
    logits = model(input_ids=batch.input_ids, attention_mask=None, use_cache=False).logits
    predictions = logits[:, :-1].flatten(0, 1).float()
    targets = batch.labels[:, 1:].flatten()
    loss = functional.cross_entropy(predictions, targets, ignore_index=IGNORED, reduction="sum")
    loss = loss / batch.num_trained_tokens
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def race(shape: Shape, steps: int, benchmark: Any) -> dict[str, list[float]]:
    """Return the seconds of each step after the warm-up by loop: ``loop``, ``bare``, ``torch``."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, batches = settings(shape, steps), new_batches(shape, device)
    models = [new_model(shape, device) for _ in range(3)]
    method, optimizer, context = with_method(models[0], train)
    loop = TrainingLoop(models[0], method, optimizer, context)
    bare = {
        "bare": (models[1], with_method(models[1], train)[1]),
        "torch": (models[2], torch.optim.AdamW(models[2].parameters(), lr=1e-4, foreach=False)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("loop", *bare)}
    losses: dict[str, list[float]] = {name: [] for name in seconds}
    began = 0.0

    def clock() -> float:
        if device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def in_turn() -> Iterator[list[MicroBatch]]:
        nonlocal began
        began = clock()
        for step in range(steps + WARMUP_STEPS):
            yield [batches[step % len(batches)]]

    def between(done: int, loss: float) -> None:
        """Take the time of the loop's step, then make one step of each bare loop, in an order that changes."""
        nonlocal began
        seconds["loop"].append(clock() - began)
        losses["loop"].append(loss)
        for name in list(bare)[:: 1 if done % 2 else -1]:
            model, its_optimizer = bare[name]
            began = clock()
            losses[name].append(bare_step(model, its_optimizer, batches[(done - 1) % len(batches)]))
            seconds[name].append(clock() - began)
        began = clock()

    benchmark.pedantic(loop.run, args=(in_turn(), between), rounds=1, iterations=1)
    assert losses["bare"] == losses["loop"]
    timed = {name: values[WARMUP_STEPS:] for name, values in seconds.items()}
    print(f"\n{steps} steps each, {shape}, {device.type}, {torch.get_num_threads()} threads")
    for name, values in timed.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name}: median {middle:.5f} s, quartiles {low:.5f} and {high:.5f}, fastest {min(values):.5f}")
    return timed


def quartiles_of(seconds: dict[str, list[float]], combine: Callable[[float, float], float]) -> list[float]:
    """Return the quartiles over the pairs of neighbouring steps of the loop and the bare loop."""
    return statistics.quantiles(map(combine, seconds["loop"], seconds["bare"]), n=4)


def test_the_loop_costs_at_most_one_percent(benchmark: Any) -> None:
    seconds = race(REAL, STEPS, benchmark)
    low, middle, high = quartiles_of(seconds, lambda ours, theirs: ours / theirs)
    print(f"loop / bare, pairs of steps: median {middle:.4f}, quartiles {low:.4f} and {high:.4f}")
    benchmark.extra_info.update(ratio=middle, quartiles=(low, high), num_steps=STEPS)
    assert statistics.median(seconds["bare"]) >= STEP_SECONDS
    assert middle <= 1 + TARGET


def test_the_loops_own_milliseconds_are_a_hundredth_of_a_step(benchmark: Any) -> None:
    seconds = race(EMPTY, 5 * STEPS, benchmark)
    low, middle, high = quartiles_of(seconds, lambda ours, theirs: ours - theirs)
    share = middle / STEP_SECONDS
    print(
        f"loop - bare: median {1000 * middle:.2f} ms, quartiles {1000 * low:.2f} and {1000 * high:.2f}; "
        f"{100 * share:.2f}% of a step of {STEP_SECONDS} s"
    )
    benchmark.extra_info.update(own_seconds=middle, quartiles=(low, high), num_steps=5 * STEPS)
    assert share <= TARGET
