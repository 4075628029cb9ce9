"""What a mask costs where padding needs none: a step on padded rows with it, as earlier builds trained, and without.

Two equal models of grouped heads train on the same batches with label ``full`` in the harness's own step; only the mask
differs. Their steps alternate in one process, in an order that changes, and the ratio is taken pair by pair; losses
that are equal but for rounding show that both do the same work. On a CPU the clock is the process's own CPU time, which
other programs on the machine disturb less than the time of day; there weights are fp32, on CUDA bf16.

    OMP_NUM_THREADS=1 pytest benchmarks/test_padding.py -s

``HARNESS_BENCH_STEPS`` sets the timed steps of each (default 40).
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.catalogue.labels import load_labels
from harness.catalogue.models import BaseModelSpec
from harness.data.batches import MicroBatch, collate
from harness.data.examples import Example
from harness.engine.context import EngineContext
from harness.engine.padding import needs_padding_mask
from harness.engine.run_log import WARMUP_STEPS
from harness.engine.training import TrainingLoop
from harness.method import METHODS
from harness.settings import TrainSettings
from harness.tensors.decoder import find_decoder

STEPS = int(os.environ.get("HARNESS_BENCH_STEPS", "40"))
VOCABULARY, HEADS, KV_HEADS, HEAD_SIZE, BLOCKS = 2048, 16, 4, 32, 6
LENGTHS = {"short rows": (96, 81, 70, 62, 55, 50, 47, 40), "longer rows": (512, 430, 300, 210)}
"""Of the rows of a batch, in tokens."""


def new_loop(length: int, rows: int, device: torch.device) -> TrainingLoop:
    """Return the loop of label ``full`` on a model of grouped heads with fixed values."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HEADS * HEAD_SIZE,
        intermediate_size=8 * HEADS * HEAD_SIZE // 3,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=length,
    )
    train = TrainSettings(
        data="random",
        prompt="plain",
        loss_on="all",
        packing=False,
        sequence_length=length,
        batch_size=rows,
        num_steps=STEPS + WARMUP_STEPS,
        learning_rate=1e-5,
        lr_scheduler="constant",
        dtype="bf16" if device.type == "cuda" else "fp32",
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = LlamaForCausalLM(config).to(device, dtype).train()
    entry = load_labels()["full"]
    method_class = METHODS.get(entry.method)
    values = {key: value for key, value in entry.values().items() if key in method_class.Config.model_fields}
    method = method_class(method_class.Config.model_validate(values))
    spec = BaseModelSpec(name="random", architecture="LlamaForCausalLM", packaged="random")
    assert train.num_steps is not None
    context = EngineContext(seed=1, num_steps=train.num_steps, train=train, decoder=find_decoder(model, spec))
    method.prepare(model, context)
    return TrainingLoop(model, method, method.build_optimizer(model, context), context)


def new_batches(lengths: tuple[int, ...]) -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(1)
    drawn = [
        [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in lengths] for _ in range(8)
    ]
    return [collate([Example(tuple(ids), (True,) * len(ids)) for ids in rows], pad_id=0) for rows in drawn]


@pytest.mark.parametrize("rows", LENGTHS)
def test_a_step_without_the_mask_is_no_slower(benchmark: Any, rows: str) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lengths = LENGTHS[rows]
    batches = new_batches(lengths)
    loops = {masked: new_loop(max(lengths), len(lengths), device) for masked in (True, False)}
    assert not needs_padding_mask(loops[False].model)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    losses: dict[bool, list[float]] = {True: [], False: []}

    def clock() -> float:
        if device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def all_steps() -> None:
        for step in range(STEPS + WARMUP_STEPS):
            for masked in (True, False) if step % 2 else (False, True):
                begin = clock()
                loss = loops[masked].train_step([batches[step % 8].to(device, masked=masked)]).loss
                seconds[masked].append(clock() - begin)
                losses[masked].append(loss)

    benchmark.pedantic(all_steps, rounds=1, iterations=1)
    assert losses[False] == pytest.approx(losses[True], rel=1e-2 if device.type == "cuda" else 1e-5)
    timed = {masked: values[WARMUP_STEPS:] for masked, values in seconds.items()}
    low, middle, high = statistics.quantiles(map(lambda a, b: a / b, timed[False], timed[True]), n=4)
    print(f"\n{rows} {lengths}, {STEPS} steps each, {device.type}, {torch.get_num_threads()} threads")
    for masked, values in timed.items():
        print(f"{'with' if masked else 'without'} the mask: median {statistics.median(values):.4f} s a step")
    print(f"without / with, pairs of steps: median {middle:.3f}, quartiles {low:.3f} and {high:.3f}")
    benchmark.extra_info.update(ratio=middle, quartiles=(low, high), num_steps=STEPS)
    assert middle <= 1.02
