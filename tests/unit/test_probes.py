"""A probe before the first step, with a toy of a method that draws its blocks by gradient norms: end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.special import softmax

from harness.catalogue.models import BaseModelSpec
from harness.data.batches import TrainData, collate
from harness.data.examples import Example
from harness.engine.activation_checkpointing import enable_checkpointing
from harness.engine.checkpoint import Checkpoints
from harness.engine.context import EngineContext
from harness.engine.runner import execute
from harness.engine.stepping import Diverged
from harness.engine.training import TrainingLoop
from harness.method import METHODS
from harness.planning.predict import Question, predict
from harness.record import Record
from harness.record_training import Prediction
from harness.settings import TrainSettings
from harness.tensors.decoder import find_decoder
from harness.tensors.loading import build_model, load_model
from tests.records import TRAIN
from tests.toy_grass import ToyGrass, ToyGrassConfig
from tests.unit.test_gradients_seen import expected
from tests.unit.test_prediction import SMALL, small_spec
from tests.unit.test_step_memory import task
from tests.unit.test_training import ROWS

ACCUMULATED = {"batch_size": 1, "gradient_accumulation_steps": 4}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    METHODS.names()
    monkeypatch.setitem(METHODS._classes, "toy-grass", ToyGrass)


def loop_of(folder: Path, tokenizer: Any, **changes: Any) -> tuple[TrainingLoop, TrainData]:
    """Return loop and data; what is no setting of training is the method's own."""
    own = {key: value for key, value in changes.items() if key not in TrainSettings.model_fields}
    of_training = {key: value for key, value in changes.items() if key in TrainSettings.model_fields}
    train = TRAIN.model_copy(update={"num_steps": 10, "learning_rate": 1e-2, "warmup_steps": 2, **of_training})
    method = ToyGrass(ToyGrassConfig(**own))
    model = load_model(folder, train.dtype, torch.device("cpu"))
    decoder = find_decoder(model, BaseModelSpec(name="tiny", architecture="LlamaForCausalLM", folder=folder))
    context = EngineContext(seed=1, num_steps=train.num_steps or 1, train=train, decoder=decoder)
    trained = method.prepare(model, context)
    loop = TrainingLoop(trained, method, method.build_optimizer(trained, context), context)
    return loop, TrainData(ROWS, tokenizer, train, 1)


def probed(loop: TrainingLoop, data: TrainData) -> None:
    request = loop.method.probe_needed()
    assert request is not None
    loop.probe(data.step_batches(), request)


def rms_by_block(loop: TrainingLoop, micro_batches: Any) -> list[float]:
    """Return the root mean square of each block's gradient, by autograd alone."""
    before = [p.requires_grad for p in loop.model.parameters()]
    loop.model.requires_grad_(True)
    norms = expected(loop, micro_batches)
    for p, trained in zip(loop.model.parameters(), before, strict=True):
        p.requires_grad_(trained)
    found = []
    for index, block in enumerate(loop.context.decoder.blocks):
        size = sum(p.numel() for p in block.parameters())
        found.append((sum(v for k, v in norms.items() if k.startswith(f"model.layers.{index}.")) / size) ** 0.5)
    return found


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_probe_leaves_weights_states_schedule_and_freezing_as_they_are(
    in_backward: bool, tiny_llama: Path, tokenizer: Any
) -> None:
    loop, data = loop_of(tiny_llama, tokenizer, update_in_backward=in_backward)
    before = [(p.detach().clone(), p.requires_grad) for p in loop.model.parameters()]
    rate, schedule = loop.optimizer.param_groups[0]["lr"], loop.stepping.state_dict()
    probed(loop, data)
    for p, (weight, trained) in zip(loop.model.parameters(), before, strict=True):
        assert torch.equal(p, weight)
        assert p.requires_grad == trained
        assert p.grad is None
    assert not loop.optimizer.state
    assert (loop.optimizer.param_groups[0]["lr"], loop.stepping.state_dict(), loop.step) == (rate, schedule, 0)
    loop.run(data.step_batches(), lambda done, loss: None)
    result = loop.result()
    assert result.num_steps == len(result.curve.loss) == 10
    assert result.curve.learning_rate[:3] == (0.0, 0.005, 0.01)
    assert result.probe is not None
    assert (result.probe.num_batches, result.probe.num_passes, result.probe.consumed_rows) == (2, 2, False)


@pytest.mark.parametrize("each_micro_batch", [False, True])
@pytest.mark.parametrize("layout", [{"batch_size": 4}, ACCUMULATED])
def test_the_probe_shows_every_block_and_the_draws_follow(
    layout: dict[str, int], each_micro_batch: bool, tiny_llama: Path, tokenizer: Any
) -> None:
    options = {**layout, "probe_each_micro_batch": each_micro_batch}
    loop, data = loop_of(tiny_llama, tokenizer, **options)
    batches = data.step_batches()
    rows = [[loop.placed(one) for one in next(batches)] for _ in range(2)]
    passes = [[one] for batch in rows for one in batch] if each_micro_batch else rows
    found = [rms_by_block(loop, one) for one in passes]
    means = [sum(column) / len(column) for column in zip(*found, strict=True)]
    probed(loop, data)
    loop.stepping.begin_step(0)
    proof = loop.method.proof()
    assert proof["gradient_means"] == pytest.approx(means, rel=1e-4)
    assert proof["probabilities"] == pytest.approx(softmax([m / 0.01 for m in means]), rel=1e-3)
    assert [entry["step"] for entry in proof["probability_history"]] == [0, 0]  # type: ignore[index, union-attr]


def test_gradients_of_a_probe_are_freed_as_they_complete(tiny_llama: Path, tokenizer: Any) -> None:
    held = {}
    for each_micro_batch in (False, True):
        options = {**ACCUMULATED, "probe_each_micro_batch": each_micro_batch}
        loop, data = loop_of(tiny_llama, tokenizer, sequence_length=8, **options)
        probed(loop, data)
        probe = loop.result().probe
        assert probe is not None
        assert probe.tracked_peak is not None
        held[each_micro_batch] = probe.tracked_peak.at_peak.gradients_bytes
    every = sum(4 * p.numel() for p in loop.model.parameters())
    assert held[False] == every  # under accumulation they coexist
    assert held[True] < every / 2


def test_a_window_updates_what_was_trained_and_nothing_else(tiny_llama: Path, tokenizer: Any) -> None:
    loop, data = loop_of(tiny_llama, tokenizer, window_steps=2, new_share=0.25, num_steps=4)
    probed(loop, data)
    batches, windows, means = data.step_batches(), [], []
    for step in range(4):
        micro_batches = [loop.placed(batch) for batch in next(batches)]
        loop.stepping.begin_step(step)
        means.append(list(loop.method.proof()["gradient_means"]))  # type: ignore[arg-type]
        windows.append(rms_by_block(loop, micro_batches))
        loop.stepping.take_step(step, micro_batches)
    active = set(loop.method.proof()["draws"][0]["blocks"])  # type: ignore[index, call-overload]
    assert means[0] == means[1]
    for block in range(4):
        new = (windows[0][block] + windows[1][block]) / 2
        wanted = 0.25 * new + 0.75 * means[0][block] if block in active else means[0][block]
        assert means[2][block] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("at", [3, 4])
def test_a_resumed_run_goes_on_with_what_the_probe_showed(
    at: int, tiny_llama: Path, tokenizer: Any, tmp_path: Path
) -> None:
    whole, data = loop_of(tiny_llama, tokenizer)
    probed(whole, data)
    whole.run(data.step_batches(), lambda done, loss: None)

    first, data = loop_of(tiny_llama, tokenizer)
    probed(first, data)

    def stop(done: int, loss: float) -> None:
        if done == at + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(data.step_batches(), stop, Checkpoints(tmp_path, first).save, at)
    second, data = loop_of(tiny_llama, tokenizer)
    assert Checkpoints(tmp_path, second).restore() == at
    second.run(data.step_batches(at), lambda done, loss: None)
    assert second.result().probe == first.result().probe
    assert second.result().curve.loss == whole.result().curve.loss
    assert second.method.proof() == whole.method.proof()
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def run(folder: Path, work: Path, *, label: str = "toy-grass", checkpoint: bool = False, **changes: Any) -> Record:
    """Return the record of a run through the engine."""
    own = {key: value for key, value in changes.items() if key not in TrainSettings.model_fields}
    train = {key: value for key, value in changes.items() if key in TrainSettings.model_fields}
    asked = task(folder, work, **train)
    spec = asked.spec
    if label != "full":
        spec = spec.model_copy(
            update={"label": label, "method": label, "config": ToyGrassConfig(**own).model_dump(mode="json")}
        )
    update: dict[str, Any] = {"spec": spec, "run_id": spec.run_id}
    if checkpoint:
        update |= {"checkpoint_folder": work / "checkpoints" / spec.run_id, "checkpoint_every": 3}
    return execute(asked.model_copy(update=update), lambda *_: None)


def test_a_record_holds_the_phase_and_what_changed(tiny_llama: Path, tmp_path: Path) -> None:
    record = run(tiny_llama, tmp_path)
    assert (record.status, record.reason) == ("ok", None)
    names = [phase.name for phase in record.phases]
    assert names[names.index("train") + 1] == "probe"
    probe = record.phase("probe")
    assert probe is not None
    assert record.train is not None
    assert record.train.probe is not None
    assert probe.seconds >= record.train.probe.seconds > 0
    assert record.proof is not None
    history: Any = record.proof.method["probability_history"]
    assert [entry["step"] for entry in history] == [0, 0, 4]
    assert len({tuple(entry["probabilities"]) for entry in history}) == 3
    assert Record.model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize("consumes", [False, True])
def test_rows_of_the_probe_are_seen_again_or_passed_over(consumes: bool, tiny_llama: Path, tmp_path: Path) -> None:
    plain = run(tiny_llama, tmp_path, label="full", num_steps=8, max_grad_norm=None).train
    probed = run(tiny_llama, tmp_path, probe_consumes_rows=consumes, max_grad_norm=None).train
    assert plain is not None
    assert probed is not None
    assert probed.probe is not None
    assert probed.probe.consumed_rows is consumes
    first = 2 if consumes else 0
    assert probed.curve.trained_tokens == plain.curve.trained_tokens[first : first + 6]
    assert len(set(plain.curve.trained_tokens)) > 1
    assert probed.probe.trained_tokens == sum(plain.curve.trained_tokens[:2])


@pytest.mark.parametrize("consumes", [False, True])
def test_a_run_that_was_killed_makes_no_second_probe(
    consumes: bool, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tiny_llama, tmp_path, probe_consumes_rows=consumes)
    take = ToyGrass.on_step_begin

    def killed(self: ToyGrass, step: int, optimizer: Any) -> None:
        if step == 4:
            raise KeyboardInterrupt
        take(self, step, optimizer)

    with monkeypatch.context() as patch:
        patch.setattr(ToyGrass, "on_step_begin", killed)
        assert run(tiny_llama, tmp_path, checkpoint=True, probe_consumes_rows=consumes).status == "interrupted"
    monkeypatch.setattr(ToyGrass, "on_probe", lambda *_: pytest.fail("it probed again"))
    rest = run(tiny_llama, tmp_path, checkpoint=True, probe_consumes_rows=consumes)
    assert rest.status == "ok"
    assert rest.phase("probe") is None
    assert rest.train is not None
    assert whole.train is not None
    assert rest.train.resumed_at_steps == (3,)
    assert rest.train.probe is not None
    assert rest.train.curve.loss == whole.train.curve.loss
    assert rest.proof is not None
    assert whole.proof is not None
    assert rest.proof.block_checksums_after == whole.proof.block_checksums_after
    assert rest.proof.method == whole.proof.method


def test_memory_that_runs_out_in_a_probe_is_noted_there(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("harness.engine.stepping.squared_norm", full)
    record = run(tiny_llama, tmp_path)
    assert record.reason == "out of memory in phase probe, step 0, moment backward: no room"
    assert record.out_of_memory_at is not None
    assert record.out_of_memory_at.phase == "probe"


def test_a_loss_that_is_not_finite_ends_a_probe(tiny_llama: Path, tokenizer: Any) -> None:
    loop, data = loop_of(tiny_llama, tokenizer)
    with torch.no_grad():
        loop.context.decoder.embedding.weight.fill_(float("nan"))  # type: ignore[operator]
    with pytest.raises(Diverged, match="the loss is nan in pass 0 of the probe"):
        probed(loop, data)
    assert not any(p.requires_grad for block in loop.context.decoder.blocks for p in block.parameters())


def predicted(spec: Any, device: str = "cpu", **question: Any) -> Prediction:
    return predict(spec, SMALL, Question(device, **question), lambda request: None)  # type: ignore[arg-type]


def spec_of(**changes: Any) -> Any:
    own = {key: value for key, value in changes.items() if key in ToyGrassConfig.model_fields}
    base = small_spec("full", **{key: value for key, value in changes.items() if key not in own})
    config = ToyGrassConfig(**own).model_dump(mode="json")
    return base.model_copy(update={"method": "toy-grass", "label": "toy-grass", "config": config})


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("each_micro_batch", [False, True])
def test_the_peak_of_a_probe_is_predicted(accumulation: int, each_micro_batch: bool) -> None:
    """The tracker of a real probe, its bytes by category, against the prediction."""
    spec = spec_of(gradient_accumulation_steps=accumulation, probe_each_micro_batch=each_micro_batch)
    assert spec.train is not None
    told = predicted(spec, num_steps=4)
    model = build_model(SMALL, "fp32", torch.device("cpu"))
    decoder = find_decoder(model, SMALL)
    context = EngineContext(seed=1, num_steps=4, train=spec.train, decoder=decoder)
    enable_checkpointing(model, decoder, spec.train)
    method = ToyGrass(ToyGrassConfig.model_validate(spec.config))
    loop = TrainingLoop(method.prepare(model, context), method, method.build_optimizer(model, context), context)
    row = Example(tuple(range(spec.train.sequence_length)), (True,) * spec.train.sequence_length)
    batch = [collate([row] * spec.train.batch_size, 0)] * accumulation
    request = method.probe_needed()
    assert request is not None
    loop.probe(iter([batch, batch]), request)
    probe = loop.result().probe
    assert probe is not None
    assert probe.tracked_peak is not None
    assert told.probe_peak_bytes == pytest.approx(probe.tracked_peak.at_peak.total_bytes, rel=0.002)


def test_planning_says_that_it_does_not_know_the_draws() -> None:
    told = predicted(spec_of(state_policy="keep", returning_step_counter="keep"), num_steps=4)
    assert told.horizon == "all-visited"
    assert "which blocks are drawn depends on the training itself: every block was taken as visited" in told.assumptions
    parameters = sum(p.numel() for p in build_model(SMALL, "fp32", torch.device("meta")).parameters())
    assert told.optimizer_state_bytes == 2 * 4 * parameters
    first = predicted(spec_of(), num_steps=4, horizon="first")
    assert first.horizon == "first"
    assert not any("depends on the training" in sentence for sentence in first.assumptions)


def test_a_probe_has_its_place_in_a_prediction_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the probe reserves is given back: the steps' own figures are those without one."""
    with monkeypatch.context() as patch:
        patch.setattr(ToyGrass, "probe_needed", lambda self: None)
        without = predicted(spec_of(), "cuda", num_steps=4)
    told = predicted(spec_of(), "cuda", num_steps=4)
    assert without.probe_peak_bytes is None
    assert told.probe_peak_bytes is not None
    assert told.probe_peak_bytes > told.weights_bytes
    ours, theirs = (one.model_dump(exclude={"probe_peak_bytes", "predict_seconds"}) for one in (told, without))
    assert ours == theirs
