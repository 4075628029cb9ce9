"""The loop, with every named configuration: what is measured, what is observed, what is equal to what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.catalogue.labels import load_labels
from harness.catalogue.models import BaseModelSpec
from harness.data.batches import MicroBatch, TrainData, collate, validation_batches
from harness.data.examples import encode
from harness.engine.activation_checkpointing import enable_checkpointing
from harness.engine.checkpoint import Checkpoints
from harness.engine.context import EngineContext
from harness.engine.loss import summed_loss
from harness.engine.step_memory import StepMemory
from harness.engine.stepping import Diverged
from harness.engine.training import TrainingLoop, mean_loss
from harness.method import METHODS, BlockScoreRequest
from harness.record_training import TrainResult
from harness.settings import TrainSettings
from harness.tensors.decoder import checksums, find_decoder
from harness.tensors.loading import load_model
from tests.records import TRAIN

SCORES = (4.0, 3.0, 2.0, 1.0)
SMALL = {
    "active_layers": 2,
    "active_share": 0.5,
    "interval_steps": 2,
    "rank": 4,
    "score_interval": 2,
    "score_rows": 2,
    "update_gap": 2,
}
LABELS = sorted(label for label in load_labels() if label != "base")


@dataclass(frozen=True)
class Row:
    instruction: str
    output: str
    input: str = ""
    turns: tuple[()] = ()
    place: str = ""


ROWS = [Row(f"item {index}", "y" * (1 + 3 * (index % 4)) + str(index)) for index in range(16)]


class Scores(dict[BlockScoreRequest, tuple[float, ...]]):
    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: BlockScoreRequest) -> tuple[float, ...]:
        return SCORES


def build(
    label: str,
    folder: Path,
    tokenizer: Any,
    *,
    seed: int = 1,
    settings: dict[str, Any] | None = None,
    watched: Callable[[Any, Any], StepMemory] | None = None,
    **changes: Any,
) -> Any:
    """Return loop, decoder and data of one label on a tiny model.

    ``settings`` change the method's own; ``watched`` makes what watches the steps, of model and optimizer.
    """
    training: TrainSettings = TRAIN.model_copy(update={"num_steps": 4, "learning_rate": 1e-2, **changes})
    entry = load_labels()[label]
    method_class = METHODS.get(entry.method)
    values = {key: value for key, value in entry.values().items() if key in method_class.Config.model_fields}
    values |= {key: value for key, value in SMALL.items() if key in values}
    values |= {key: value for key, value in (settings or {}).items() if key in method_class.Config.model_fields}
    method = method_class(method_class.Config.model_validate(values))
    model = load_model(folder, training.dtype, torch.device("cpu"))
    spec = BaseModelSpec(name="tiny", architecture="LlamaForCausalLM", folder=folder)
    decoder = find_decoder(model, spec)
    data = TrainData(ROWS, tokenizer, training, seed)
    context = EngineContext(
        seed=seed,
        num_steps=training.num_steps or 1,
        train=training,
        decoder=decoder,
        stream_rows=data.stream_batch,
    )
    context._block_scores = Scores()
    enable_checkpointing(model, decoder, training)
    trained = method.prepare(model, context)
    optimizer = method.build_optimizer(trained, context)
    memory = None if watched is None else watched(trained, optimizer)
    loop = TrainingLoop(trained, method, optimizer, context, memory=memory)
    return loop, decoder, data


def train(label: str, folder: Path, tokenizer: Any, **changes: Any) -> tuple[TrainResult, Any, TrainingLoop]:
    loop, decoder, data = build(label, folder, tokenizer, **changes)
    loop.run(data.step_batches(), lambda done, loss: None)
    return loop.result(), decoder, loop


@pytest.mark.parametrize("label", LABELS)
def test_micro_batches_of_unequal_answers_equal_one_batch(label: str, tiny_llama: Path, tokenizer: Any) -> None:
    # Dropout draws differ by nature, and bf16 moments round by more than what is to be seen.
    exact = {"lora_dropout": 0.0, "moment_dtype": "fp32"}
    changes: dict[str, Any] = {"num_steps": 3, "max_grad_norm": None, "learning_rate": 1e-3, "settings": exact}
    layouts = ({"batch_size": 4}, {"batch_size": 1, "gradient_accumulation_steps": 4})
    (one, _, whole), (many, _, split) = (train(label, tiny_llama, tokenizer, **layout, **changes) for layout in layouts)
    assert one.curve.trained_tokens == many.curve.trained_tokens
    assert many.curve.loss == pytest.approx(one.curve.loss, rel=1e-5)
    if "projected" in whole.method.proof():
        return  # Adam divides noise by noise where a gradient is zero, and projecting back spreads that over a matrix.
    for (name, a), (_, b) in zip(whole.model.named_parameters(), split.model.named_parameters(), strict=True):
        # Where a gradient is zero within rounding, Adam divides noise by noise: a step of up to lr either way.
        assert torch.isclose(a, b, rtol=1e-3, atol=1e-5).double().mean() > 0.95, name


@pytest.mark.parametrize("label", [label for label in LABELS if "layerwise" not in label])
def test_gradients_of_micro_batches_add_up_to_those_of_one_batch(label: str, tiny_llama: Path, tokenizer: Any) -> None:
    gradients = []
    for layout in ({"batch_size": 4}, {"batch_size": 1, "gradient_accumulation_steps": 4}):
        loop, _, data = build(label, tiny_llama, tokenizer, settings={"lora_dropout": 0.0}, **layout)
        micro_batches = next(data.step_batches())
        loop.method.on_step_begin(0, loop.optimizer)
        num_trained = sum(batch.num_trained_tokens for batch in micro_batches)
        loop.stepping._backward("forward/0", list(enumerate(micro_batches)), num_trained)
        gradients.append({n: p.grad for n, p in loop.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("label", LABELS)
def test_same_seed_same_weights_bit_by_bit_and_another_seed_differs(
    label: str, tiny_llama_tied: Path, tokenizer: Any
) -> None:
    changes: dict[str, Any] = {"max_grad_norm": None if "layerwise" in label else 1.0}
    first = checksums(train(label, tiny_llama_tied, tokenizer, seed=1, **changes)[1])
    torch.rand(7)  # a foreign draw from the global generator moves nothing
    again = checksums(train(label, tiny_llama_tied, tokenizer, seed=1, **changes)[1])
    other = checksums(train(label, tiny_llama_tied, tokenizer, seed=2, **changes)[1])
    assert first == again
    assert first != other


@pytest.mark.parametrize("label", LABELS)
def test_what_was_trainable_changed_and_nothing_else(label: str, tiny_mistral: Path, tokenizer: Any) -> None:
    loop, decoder, data = build(label, tiny_mistral, tokenizer, max_grad_norm=None)
    blocks_before, others_before = checksums(decoder)
    loop.run(data.step_batches(), lambda done, loss: None)
    blocks_after, others_after = checksums(decoder)
    changed = {i for i, (a, b) in enumerate(zip(blocks_before, blocks_after, strict=True)) if a != b}
    assert changed == set(loop.log.ever_trainable_blocks)
    assert {role for role in others_before if others_before[role] != others_after[role]} == set(
        loop.log.ever_trainable_others
    )
    result = loop.result()
    assert [entry.step for entry in result.block_activity] == sorted({e.step for e in result.block_activity})
    assert len(result.curve.trainable_params) == result.num_steps == 4


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-3)])
def test_loss_is_the_mean_over_trained_tokens_alone(
    dtype: Any, tolerance: float, tiny_llama: Path, tokenizer: Any
) -> None:
    model = load_model(tiny_llama, dtype, torch.device("cpu"))
    batch = collate([encode(row, tokenizer, TRAIN) for row in ROWS[:3]], pad_id=257)
    expected = 0.0
    for row in ROWS[:3]:
        example = encode(row, tokenizer, TRAIN)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.ids])).logits[0].float().log_softmax(-1)
        expected -= sum(
            float(logits[i - 1, token])
            for i, (token, flag) in enumerate(zip(example.ids, example.trained, strict=True))
            if flag
        )
    assert summed_loss(model, batch).item() == pytest.approx(expected, rel=tolerance)
    context = EngineContext(seed=1, num_steps=1, train=TRAIN, decoder=None)  # type: ignore[arg-type]
    mean, tokens = mean_loss(model, [batch], context)
    assert tokens == sum(sum(encode(row, tokenizer, TRAIN).trained) for row in ROWS[:3])
    assert mean == pytest.approx(expected / tokens, rel=tolerance)


def test_the_schedule_is_the_one_asked_for(tiny_llama: Path, tokenizer: Any) -> None:
    result, _, _ = train("full", tiny_llama, tokenizer, learning_rate=1.0, warmup_steps=2, num_steps=6)
    assert result.curve.learning_rate == pytest.approx([0.0, 0.5, 1.0, 0.75, 0.5, 0.25])
    constant, _, _ = train("full", tiny_llama, tokenizer, learning_rate=0.5, lr_scheduler="constant")
    assert constant.curve.learning_rate == (0.5,) * 4


def test_clipping_bounds_the_step_and_records_the_norm_before(tiny_llama: Path, tokenizer: Any) -> None:
    result, _, _ = train("full", tiny_llama, tokenizer, max_grad_norm=1e-3)
    free, _, _ = train("full", tiny_llama, tokenizer, max_grad_norm=None)
    assert all(norm is not None and norm > 1e-3 for norm in result.curve.grad_norm)
    assert free.curve.grad_norm == (None,) * 4


def test_checkpointing_changes_no_bit_of_the_loss(tiny_llama: Path, tokenizer: Any) -> None:
    plain, _, _ = train("full", tiny_llama, tokenizer)
    checkpointed, _, _ = train("full", tiny_llama, tokenizer, gradient_checkpointing=True)
    assert checkpointed.curve.loss == plain.curve.loss


def test_a_loss_that_is_not_finite_stops_at_once(tiny_llama: Path, tokenizer: Any) -> None:
    loop, decoder, data = build("full", tiny_llama, tokenizer)
    with torch.no_grad():
        decoder.embedding.weight.fill_(float("nan"))
    with pytest.raises(Diverged, match="the loss is nan at step 0"):
        loop.run(data.step_batches(), lambda done, loss: None)
    assert loop.step == 0


def test_step_time_leaves_the_warm_up_out(tiny_llama: Path, tokenizer: Any) -> None:
    short, _, _ = train("full", tiny_llama, tokenizer, num_steps=3)
    assert (short.step_seconds_mean, short.num_timed_steps) == (None, 0)
    longer, _, _ = train("full", tiny_llama, tokenizer, num_steps=5)
    assert longer.num_timed_steps == 2
    assert longer.step_seconds_mean == pytest.approx(sum(longer.curve.seconds[3:]) / 2)


def test_bf16_weights_stay_bf16(tiny_llama: Path, tokenizer: Any) -> None:
    _, decoder, loop = train("full", tiny_llama, tokenizer, dtype="bf16")
    assert {p.dtype for p in loop.model.parameters()} == {torch.bfloat16}
    assert decoder.embedding.weight.dtype == torch.bfloat16


CHECKPOINTED = {"num_steps": 6, "dtype": "bf16", "max_grad_norm": None}


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("lisa", {"state_policy": "drop", "returning_step_counter": "reset"}),
    ("lisa", {"state_policy": "offload"}),
    ("lisa", {"sampling": "bernoulli"}),
    ("owlore", {"state_policy": "offload", "returning_step_counter": "reset"}),
    ("owlore", {"update_gap_counter": "global", "projection_side": "smaller"}),
    ("owlore", {"refresh_on_activation": True, "projector": "svd"}),
    ("owlore", {"update_in_backward": True, "weight_decay": 0.1}),
    ("full", {"master_weights": True, "moment_dtype": "fp32"}),
    ("galore", {"stochastic_rounding": True}),
    ("lora", {"update_in_backward": True, "adapter_dtype": "bf16"}),
    ("galore", {"moment_rounding": "stochastic"}),
    ("full", {"moment_rounding": "stochastic", "update_slice_elements": 100, "update_in_backward": True}),
    ("lora", {"loss_chunk_columns": 64, "gradient_checkpointing": True, "checkpoint_granularity": "nested"}),
    ("full", {"update_slice_elements": 100, "master_weights": True, "moment_dtype": "fp32"}),
    ("owlore", {"update_in_backward": True, "two_pass_clipping": True, "max_grad_norm": 0.1}),
    ("galore", {"project_vocabulary": True, "loss_chunk_columns": 64}),
    ("lisa", {"sampling": "tour", "gradient_checkpointing": True, "offload_checkpoints": True}),
]
CASES = [pytest.param(label, {}, id=label) for label in LABELS] + [
    pytest.param(label, changes, id="-".join([label, *(f"{key}={value}" for key, value in changes.items())]))
    for label, changes in OPTIONS
]


@pytest.mark.parametrize(("label", "changes"), CASES)
@pytest.mark.parametrize("at", [3, 4])
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    label: str, changes: dict[str, Any], at: int, tiny_llama: Path, tokenizer: Any, tmp_path: Path
) -> None:
    how = {key: value for key, value in changes.items() if key in TrainSettings.model_fields}
    options = {**CHECKPOINTED, **how, "settings": changes}
    whole, whole_decoder, whole_loop = train(label, tiny_llama, tokenizer, **options)

    first, _, data = build(label, tiny_llama, tokenizer, **options)
    stopped = Checkpoints(tmp_path, first)

    def stop(done: int, loss: float) -> None:
        if done == at + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(data.step_batches(), stop, stopped.save, at)

    second, decoder, data = build(label, tiny_llama, tokenizer, **options)
    assert Checkpoints(tmp_path, second).restore() == at
    second.run(data.step_batches(second.step), lambda done, loss: None)
    assert checksums(decoder) == checksums(whole_decoder)
    resumed = second.result()
    assert resumed.resumed_at_steps == (at,)
    assert resumed.curve.loss == whole.curve.loss
    assert resumed.curve.learning_rate == whole.curve.learning_rate
    assert resumed.block_activity == whole.block_activity
    assert resumed.curve.optimizer_state_bytes == whole.curve.optimizer_state_bytes
    for mine, theirs in zip(_tensors(second), _tensors(whole_loop), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("label", ["lora", "lisa", "owlore", "galore-layerwise"])
def test_readings_of_the_held_out_loss_move_nothing_and_survive_a_resume(
    label: str, tiny_llama: Path, tokenizer: Any, tmp_path: Path
) -> None:
    options = {"num_steps": 7, "max_grad_norm": None, "validation_rows": 3}  # lora has dropout
    plain, untouched, _ = train(label, tiny_llama, tokenizer, **options)
    options["validation_every_steps"] = 2

    def run(stop: int | None) -> tuple[TrainingLoop, Any]:
        loop, decoder, data = build(label, tiny_llama, tokenizer, **options)
        held_out = validation_batches(ROWS, tokenizer, loop.context.train)
        checkpoints = Checkpoints(tmp_path, loop)
        loop.note_validation(mean_loss(loop.model, held_out, loop.context)[0])
        checkpoints.restore()

        def interrupt(done: int, loss: float) -> None:
            if done == stop:
                raise KeyboardInterrupt

        loop.run(
            data.step_batches(loop.step),
            interrupt,
            checkpoints.save if stop else None,
            3,
            lambda: mean_loss(loop.model, held_out, loop.context)[0],
        )
        return loop, decoder

    loop, decoder = run(None)
    whole = loop.result()
    assert checksums(decoder) == checksums(untouched)
    assert whole.curve.loss == plain.curve.loss
    assert whole.validation_steps == (0, 2, 4, 6)
    assert len(set(whole.validation_losses)) == 4
    with pytest.raises(KeyboardInterrupt):
        run(5)
    loop, decoder = run(None)
    assert loop.result().resumed_at_steps == (3,)
    assert checksums(decoder) == checksums(untouched)
    assert loop.result().validation_steps == whole.validation_steps
    assert loop.result().validation_losses == whole.validation_losses


def _tensors(loop: TrainingLoop) -> list[torch.Tensor]:
    return [
        value
        for state in loop.optimizer.state_dict()["state"].values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]


def test_a_batch_moves_to_a_device_whole() -> None:
    batch = MicroBatch(torch.zeros(1, 2), torch.zeros(1, 2), None, 2, 1).to(torch.device("meta"))
    assert batch.input_ids.is_meta
    assert batch.labels.is_meta
