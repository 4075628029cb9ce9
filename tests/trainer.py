"""One label twice on the same rows: in the engine's own loop, and inside a Trainer of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.catalogue.labels import load_labels
from harness.catalogue.models import USUAL_PLACES
from harness.data.batches import MicroBatch, TrainData
from harness.data.examples import Example
from harness.engine.activation_checkpointing import enable_checkpointing
from harness.engine.block_scores import block_scores
from harness.engine.context import EngineContext
from harness.engine.training import TrainingLoop
from harness.integrations.transformers import Prepared, prepare
from harness.method import METHODS, Method, check_run
from harness.settings import TrainSettings
from harness.tensors.decoder import decoder_at
from harness.tensors.quantized import quantize

SEED, STEPS, ROWS, LENGTH, VOCABULARY, BATCH = 3, 5, 16, 12, 64, 2
SMALL = {
    "active_layers": 2,
    "active_share": 0.5,
    "interval_steps": 2,
    "rank": 4,
    "score_interval": 2,
    "score_rows": 2,
    "update_gap": 2,
    "probe_batches": 2,
    "stage_steps": 2,
    "tau": 2.0,
}
"""Settings that a published configuration gets to fit the tiny model: draws and projections change within the steps."""
TRAINED = sorted(label for label, entry in load_labels().items() if METHODS.get(entry.method).trains)
OF_EACH_KIND = ("full", "lisa", "galore", "lora", "grass", "ist", "owlore")
"""All of the model; few blocks; a projection; adapters; gradients seen; losses taken; blocks by scores, projected."""
UNTRAINED = sorted(set(load_labels()) - set(TRAINED))


def tiny_model(dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Return a LLaMA of four blocks with the same random weights each time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return LlamaForCausalLM(LlamaConfig(**shape | changes)).to(dtype)


def examples(*, padded: bool = False, prompts: bool = False) -> list[Example]:
    """Return rows of random tokens, of different lengths where they are padded, with untrained beginnings if asked."""
    generator = torch.Generator().manual_seed(11)
    rows = []
    for index in range(ROWS):
        length = LENGTH - index % 5 if padded else LENGTH
        ids = tuple(torch.randint(0, VOCABULARY, (length,), generator=generator).tolist())
        rows.append(Example(ids, tuple(position >= (index % 4) * prompts for position in range(length))))
    return rows


def features(rows: list[Example]) -> list[dict[str, list[int]]]:
    """Return rows as a Trainer has them."""
    return [
        {
            "input_ids": list(row.ids),
            "labels": [token if trained else -100 for token, trained in zip(row.ids, row.trained, strict=True)],
            "attention_mask": [1] * len(row.ids),
        }
        for row in rows
    ]


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Return rows padded on the right."""
    length = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {
        key: torch.tensor([row[key] + [value] * (length - len(row[key])) for row in rows])
        for key, value in fill.items()
    }


def method_of(label: str) -> type[Method]:
    """Return the method of a label, or of that name."""
    return METHODS.get(load_labels()[label].method if label in load_labels() else label)


def settings_of(label: str, dtype: torch.dtype, **changes: Any) -> dict[str, Any]:
    """Return changes of a label that make it fit the tiny model and its precision."""
    fields = method_of(label).Config.model_fields
    values = load_labels()[label].values() if label in load_labels() else {}
    fitting = {key: value for key, value in SMALL.items() if values.get(key) not in (None, "none")}
    if dtype == torch.float32:
        fitting |= {key: False for key in ("master_weights", "stochastic_rounding") if values.get(key)}
    return {key: value for key, value in (fitting | changes).items() if key in fields}


def calibration() -> list[torch.Tensor]:
    """Return sequences for block scores."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, VOCABULARY, (1, 16), generator=generator) for _ in range(3)]


def training_arguments(folder: Path, kind: Any = None, **changes: Any) -> Any:
    """Return arguments of a Trainer that takes the rows in their order."""
    from transformers import TrainingArguments

    given: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "warmup_steps": 2,
        "max_grad_norm": 0.0,
        "seed": SEED,
        "train_sampling_strategy": "sequential",
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    return (kind or TrainingArguments)(**given | changes)


def prepared(label: str, args: Any, dtype: torch.dtype = torch.float32, **changes: Any) -> Prepared:
    """Return a label prepared on the tiny model."""
    settings = settings_of(label, dtype, **changes.pop("settings", {}))
    model = changes.pop("model", None) or tiny_model(dtype)
    return prepare(label, model, args, settings=settings, calibration=calibration(), **changes)


def trainer_of(made: Prepared, args: Any, rows: list[Example] | None = None, **changes: Any) -> Any:
    """Return a Trainer of what was prepared."""
    from transformers import Trainer

    given: dict[str, Any] = {
        "model": made.model,
        "args": args,
        "train_dataset": features(rows or examples()),
        "data_collator": collate,
        "optimizers": (made.optimizer, None),
        "callbacks": [made.callback],
    }
    return Trainer(**given | changes)


def own_loop(
    label: str,
    made: Prepared,
    dtype: torch.dtype = torch.float32,
    rows: list[Example] | None = None,
    before: Callable[[TrainingLoop], None] = lambda loop: None,
    model: Any = None,
    places: Mapping[str, str] = USUAL_PLACES,
) -> TrainingLoop:
    """Return the engine's own loop of what a Trainer trains, after its last step.

    Args:
        label: Of methods.toml.
        made: Whose settings, of the method and of training, it has.
        dtype: Of the weights.
        rows: In their order.
        before: Called with the loop before it begins.
        model: As the Trainer's was before; None: the tiny one.
        places: Where its parts are.
    """
    wanted: TrainSettings = made.run.context.train
    method_class = method_of(label)
    check_run(method_class, made.run.method.config, wanted)
    method = method_class(made.run.method.config)
    model = tiny_model(dtype) if model is None else model
    decoder = decoder_at(model, places, "tiny")
    if wanted.quantized is not None:
        quantize(model, wanted.quantized, wanted.dtype)
    request = method.block_scores_needed()
    data = TrainData(rows or examples(), None, wanted, made.run.context.seed)
    context = EngineContext(
        seed=made.run.context.seed,
        num_steps=wanted.num_steps or 1,
        train=wanted,
        decoder=decoder,
        block_scores={} if request is None else {request: block_scores(request, model, decoder, calibration())},
        stream_rows=data.stream_batch,
    )
    enable_checkpointing(model, decoder, wanted)
    model = method.prepare(model, context)
    loop = TrainingLoop(model, method, method.build_optimizer(model, context), context)
    before(loop)
    steps = in_order(rows or examples(), wanted)
    if (probe := method.probe_needed()) is not None:
        loop.probe(iter(steps), probe)
    loop.run(iter(steps), lambda done, loss: None)
    return loop


def in_order(rows: list[Example], train: TrainSettings) -> list[list[MicroBatch]]:
    """Return the micro-batches of every step, as a Trainer takes rows in their order, epoch after epoch."""
    from harness.data.batches import collate as micro_batch

    size, number = train.batch_size, train.gradient_accumulation_steps
    assert len(rows) % size == 0
    batches = [micro_batch(rows[start : start + size], 0) for start in range(0, len(rows), size)]
    epoch = [batches[start : start + number] for start in range(0, len(batches), number)]  # the last may be shorter
    return epoch * (train.num_steps or 1)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of all weights by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return by how much two models' weights differ at most."""
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)
