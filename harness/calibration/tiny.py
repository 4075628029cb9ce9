"""A tiny model under a real method, optimizer and training loop: what a check lets take a few steps on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from harness.calibration.bench import Skip
from harness.calibration.parts import method_labels
from harness.catalogue.labels import load_labels
from harness.catalogue.models import BaseModelSpec, ModelShape
from harness.data.batches import MicroBatch, collate
from harness.data.examples import Example
from harness.engine.activation_checkpointing import enable_checkpointing
from harness.engine.checkpoint import Checkpoints
from harness.engine.context import EngineContext
from harness.engine.ranks import ALONE, Ranks
from harness.engine.step_memory import StepMemory
from harness.engine.training import TrainingLoop
from harness.method import METHODS, Method, MethodConfig, check_run
from harness.settings import EvaluationSettings, TrainSettings
from harness.spec import RunSpec
from harness.tensors.decoder import Checksums, checksums, find_decoder
from harness.tensors.dtypes import DTYPES
from harness.tensors.loading import build_model
from harness.tensors.quantized import quantize
from harness.tensors.seeding import numpy_generator, seeded_globally
from harness.tensors.sharded import shard

SHAPE = ModelShape(
    hidden_size=64,
    intermediate_size=160,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=256,
    max_positions=64,
    rope_theta=10000.0,
    tied_head=False,
)
MODEL = BaseModelSpec(name="tiny", architecture="LlamaForCausalLM", shape=SHAPE, weights="random")
ROWS, LENGTH, STEPS = 4, 32, 3
FITTING: dict[str, Any] = {
    "rank": 8,
    "active_layers": 2,
    "active_share": 0.5,
    "interval_steps": 2,
    "update_gap": 2,
    "score_interval": 2,
    "score_rows": 2,
}
"""Settings that a published configuration gets to fit the tiny model, where it has them."""
COMPARABLE: dict[str, Any] = {"lora_dropout": 0.0, "projector": "svd"}
"""Settings without random numbers, which a CPU and a GPU draw differently; dropout and the other projector are seen to
elsewhere."""
SEED = 1


@dataclass
class TinyRun:
    """A run that takes its steps when it is asked."""

    loop: TrainingLoop
    batches: list[MicroBatch]
    losses: list[float] = field(default_factory=list)

    def take(self, steps: int = STEPS) -> list[float]:
        """Take optimizer steps and return the losses of all so far."""
        loop = self.loop
        number = loop.context.train.gradient_accumulation_steps
        loop.model.train()
        for _ in range(steps):
            first = number * loop.step
            batches = [loop.placed(batch) for batch in self.batches[first : first + number]]
            own = (tensor for _, batch in loop.ranks.share(batches) for tensor in batch.tensors)
            with loop.memory.step(loop.step, own):
                self.losses.append(loop.train_step(batches).loss)
            loop.step += 1
        return self.losses

    def checksums(self) -> Checksums:
        """Return the checksums of the model's parts."""
        return checksums(self.loop.context.decoder)

    def checkpoints(self, folder: Path) -> Checkpoints:
        """Return the checkpoints of this run in a folder."""
        return Checkpoints(folder / "tiny", self.loop)


def tiny_run(
    label: str,
    device: torch.device,
    settings: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    *,
    published: bool = True,
    ranks: Ranks = ALONE,
    model_spec: BaseModelSpec = MODEL,
    tracked_steps: int | None = None,
) -> TinyRun:
    """Return a run of a label, equal weights and rows on every device.

    Args:
        label: Of methods.toml, or the name of a registered method.
        device: Where it trains.
        settings: Of the method, over the label's; those it does not have are left out.
        train: Of training, over the tiny ones.
        published: False: a label that is called like the method gives nothing; ``settings`` are all there are.
        ranks: The processes that share it out.
        model_spec: A model with a shape of at least ``MODEL``'s vocabulary; its weights are random.
        tracked_steps: First steps whose memory the tracker follows; None: as of any run.

    Raises:
        Skip: the method has settings without a default and no label that gives them.
        Refused: the method does not take these settings.
    """
    wanted = _train_settings(train or {})
    method = _method(label, settings or {}, wanted, published=published, num_ranks=ranks.size)
    with seeded_globally(SEED, "weights"):
        model = build_model(model_spec, "fp32", torch.device("cpu"))
    model.to("cpu" if ranks.several else device, DTYPES[wanted.dtype])
    if wanted.quantized is not None:
        quantize(model, wanted.quantized, wanted.dtype)
    decoder = find_decoder(model, model_spec)
    request = method.block_scores_needed()
    scores = [float(number + 1) for number in range(len(decoder.blocks))]
    context = EngineContext(
        seed=SEED,
        num_steps=wanted.num_steps or 1,
        train=wanted,
        decoder=decoder,
        block_scores={} if request is None else {request: scores},
        stream_rows=_stream_rows,
        ranks=ranks,
    )
    enable_checkpointing(model, decoder, wanted)
    trained: nn.Module = method.prepare(model, context)
    if ranks.several:
        context = context.with_decoder(shard(trained, decoder, ranks.mesh, method.cut_by_columns(trained, context)))
    optimizer = method.build_optimizer(trained, context)
    memory = None if tracked_steps is None else StepMemory(trained, optimizer, tracked_steps)
    loop = TrainingLoop(trained, method, optimizer, context, memory=memory, ranks=ranks)
    number = (wanted.num_steps or 1) * wanted.gradient_accumulation_steps
    return TinyRun(loop, list(_batches(number)))


def tiny_spec(run: TinyRun, label: str, method_name: str, model_spec: BaseModelSpec = MODEL) -> RunSpec:
    """Return the spec of a run, for planning."""
    return RunSpec(
        suite="check",
        suite_version=1,
        protocol="check",
        model=model_spec.identity(),
        label=label,
        method=method_name,
        config=run.loop.method.config.model_dump(mode="json"),
        train=run.loop.context.train,
        evaluation=EvaluationSettings(tasks=()),
        calibration=None,
        sources={"train": "check"},
        max_steps=None,
        seed=run.loop.context.seed,
    )


def fitting_weights(settings: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return settings without fp32 masters where the weights are fp32: there they are refused."""
    masterless = dtype == "fp32" and settings.get("master_weights")
    return settings | {"master_weights": False} if masterless else settings


def label_with(*settings: str) -> str:
    """Return the first label whose method has all of these settings.

    Raises:
        Skip: there is none.
    """
    for label, method in method_labels().items():
        if set(settings) <= set(METHODS.get(method).Config.model_fields):
            return label
    raise Skip(f"no registered method has the settings {', '.join(settings)}")


def differences(found: list[float], expected: list[float]) -> float:
    """Return the largest relative difference of two lists of losses."""
    return max(abs(one - other) / abs(other) for one, other in zip(found, expected, strict=True))


def changed_by(run: TinyRun, act: Callable[[], object]) -> bool:
    """Return whether something changes a run's weights."""
    before = run.checksums()
    act()
    return before != run.checksums()


def _method(label: str, settings: dict[str, Any], train: TrainSettings, *, published: bool, num_ranks: int) -> Method:
    entry = load_labels().get(label) if published else None
    method_class = METHODS.get(label if entry is None else entry.method)
    fields = set(method_class.Config.model_fields)
    values = {} if entry is None else {key: value for key, value in entry.values().items() if key in fields}
    known = set(values) if entry is not None else fields if published else set()
    values |= {key: value for key, value in {**FITTING, **COMPARABLE}.items() if key in known}
    values = fitting_weights(values, train.dtype) | {key: value for key, value in settings.items() if key in fields}
    config = _config(method_class.Config, values, label)
    check_run(method_class, config, train, num_ranks)
    return method_class(config)


def _config(kind: type[MethodConfig], values: dict[str, Any], label: str) -> MethodConfig:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        if all(fault["type"] == "missing" for fault in error.errors()):
            missing = ", ".join(str(fault["loc"][0]) for fault in error.errors())
            raise Skip(f"method '{label}' has no label that gives its settings {missing}") from error
        raise


def _train_settings(changes: dict[str, Any]) -> TrainSettings:
    values: dict[str, Any] = {
        "data": "random-tokens",
        "prompt": "plain",
        "loss_on": "all",
        "packing": False,
        "sequence_length": LENGTH,
        "batch_size": ROWS,
        "num_steps": 2 * STEPS,
        "learning_rate": 1e-3,
        "lr_scheduler": "constant",
        "dtype": "fp32",
    }
    return TrainSettings(**{**values, **changes})


def _stream_rows(stream: str, index: int, num_rows: int) -> MicroBatch:
    """Return rows of random tokens of a stream of the method's own."""
    tokens = numpy_generator(SEED, f"{stream}/{index}").integers(0, SHAPE.vocab_size, (num_rows, LENGTH))
    return collate([Example(tuple(map(int, row)), (True,) * LENGTH) for row in tokens], pad_id=0)


def _batches(number: int) -> Iterator[MicroBatch]:
    """Yield micro-batches of random tokens, one row of them shorter than the others."""
    for index in range(number):
        tokens = numpy_generator(SEED, f"batch/{index}").integers(0, SHAPE.vocab_size, (ROWS, LENGTH))
        lengths = [LENGTH] * (ROWS - 1) + [LENGTH // 2]
        rows = [tuple(map(int, row[:length])) for row, length in zip(tokens, lengths, strict=True)]
        yield collate([Example(row, (True,) * len(row)) for row in rows], pad_id=0)
