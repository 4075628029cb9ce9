"""What torch's own CPU allocator says of the steps of a real run of a small model, for tests of predictions."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from harness.catalogue.labels import load_labels
from harness.catalogue.models import BaseModelSpec
from harness.data.batches import MicroBatch, collate
from harness.data.examples import Example
from harness.engine.activation_checkpointing import enable_checkpointing
from harness.engine.context import EngineContext
from harness.engine.ranks import ALONE, Ranks
from harness.engine.step_memory import StepMemory
from harness.engine.training import TrainingLoop
from harness.expansion import expand, load_suite
from harness.method import METHODS
from harness.spec import RunSpec
from harness.tensors.decoder import find_decoder
from harness.tensors.loading import build_model
from harness.tensors.quantized import quantize
from harness.tensors.sharded import shard

SCORES = [4.0, 3.0, 2.0, 1.0]
"""Of the blocks of a small model."""
STEPS = 4


def spec_of(label: str, model: BaseModelSpec, settings: dict[str, Any], **train: Any) -> RunSpec:
    """Return the run of one label in the commonsense suite with changed settings; what a label lacks is left out."""
    suite = load_suite("commonsense")
    changed = {**suite.train, "num_steps": STEPS, **train}
    changed.pop("num_epochs")
    suite = suite.model_copy(update={"train": changed})
    values = load_labels()[label].values()
    if changed["dtype"] == "fp32":
        settings = {"master_weights": False, **settings}  # refused of fp32 weights
    fitting = {key: value for key, value in settings.items() if key in values}
    return expand(suite, models={model.name: model}, sources={}, labels=[label], seeds=[1], overrides=fitting)[0]


def peak_of_real_run(
    spec: RunSpec,
    model_spec: BaseModelSpec,
    lengths: Sequence[int],
    *,
    steps: int = STEPS,
    scores: Sequence[float] = SCORES,
    spoil: Callable[[TrainingLoop], None] = lambda loop: None,
    tracked_steps: int = 0,
) -> int:
    """Return the largest sum of bytes that torch's CPU allocator reports while the steps of a real run are taken.

    Args:
        spec: What is run.
        model_spec: A model with a shape; its weights are random.
        lengths: Of the rows of every micro-batch, which is padded to the longest.
        steps: Optimizer steps.
        scores: Of the blocks, where the method asks for them.
        spoil: Called with the loop before the first step.
        tracked_steps: How many of the first steps the loop's own tracker follows.
    """
    batches = batches_of(spec, model_spec, lengths, steps)  # made before anything is counted: a run holds one at a time
    gc.collect()  # what earlier tests left in cycles would be freed in the midst of it, and counted against it
    with warnings.catch_warnings(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        warnings.simplefilter("ignore")
        loop = loop_of(spec, model_spec, lengths, steps=steps, scores=scores, tracked_steps=tracked_steps)
        spoil(loop)
        loop.model.train()
        for micro_batches in batches:
            with record_function("one step"), loop.memory.step(loop.step):
                loop.train_step([loop.placed(batch) for batch in micro_batches])
            loop.step += 1
    events = profiler.profiler.kineto_results.events()
    begin = min(event.start_ns() for event in events if event.name() == "one step")
    memory = sorted(
        (event.start_ns(), i, event.nbytes()) for i, event in enumerate(events) if event.name() == "[memory]"
    )
    live = peak = 0
    for time, _, num_bytes in memory:
        live += num_bytes
        if time >= begin:
            peak = max(peak, live)
    return peak


def loop_of(
    spec: RunSpec,
    model_spec: BaseModelSpec,
    lengths: Sequence[int],
    *,
    steps: int = STEPS,
    scores: Sequence[float] = SCORES,
    tracked_steps: int = 0,
    ranks: Ranks = ALONE,
) -> TrainingLoop:
    """Return the loop of a real run, as :func:`peak_of_real_run` has it; each of ``ranks`` holds its part."""
    assert spec.train is not None
    model = build_model(model_spec, spec.train.dtype, torch.device("cpu"))
    if spec.train.quantized is not None:
        quantize(model, spec.train.quantized, spec.train.dtype)
    decoder = find_decoder(model, model_spec)
    method_class = METHODS.get(spec.method)
    method = method_class(method_class.Config.model_validate(spec.config))
    request = method.block_scores_needed()
    row = rows_of(model_spec, lengths)[0]
    context = EngineContext(
        seed=spec.seed,
        num_steps=steps,
        train=spec.train,
        decoder=decoder,
        block_scores={} if request is None else {request: scores},
        stream_rows=lambda stream, index, num_rows: collate([row] * num_rows, 0),
        ranks=ranks,
    )
    enable_checkpointing(model, decoder, spec.train)
    trained = method.prepare(model, context)
    if ranks.several:
        columns = method.cut_by_columns(trained, context)
        context = context.with_decoder(shard(trained, decoder, ranks.mesh, columns))
    optimizer = method.build_optimizer(trained, context)
    memory = StepMemory(trained, optimizer, tracked_steps)
    return TrainingLoop(trained, method, optimizer, context, memory=memory, ranks=ranks)


def rows_of(model_spec: BaseModelSpec, lengths: Sequence[int]) -> list[Example]:
    """Return rows of so many tokens."""
    assert model_spec.shape is not None
    vocabulary = model_spec.shape.vocab_size
    return [
        Example(tuple((7 * row + i) % vocabulary for i in range(length)), (True,) * length)
        for row, length in enumerate(lengths)
    ]


def batches_of(spec: RunSpec, model_spec: BaseModelSpec, lengths: Sequence[int], steps: int) -> list[list[MicroBatch]]:
    """Return the micro-batches of each step, all alike."""
    assert spec.train is not None
    rows, number = rows_of(model_spec, lengths), spec.train.gradient_accumulation_steps
    return [[collate(rows, 0) for _ in range(number)] for _ in range(steps)]
