"""State of blocks that comes to the device for each update: the same bits, counted where it is, no more than said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.catalogue.models import load_models
from harness.data.batches import collate
from harness.data.examples import Example
from harness.engine.activation_checkpointing import enable_checkpointing
from harness.engine.context import EngineContext
from harness.engine.training import TrainingLoop
from harness.method import METHODS
from harness.methods import _state_stream
from harness.planning.fake_run import FakeRun
from harness.planning.predict import Question, predict
from harness.record_training import Prediction
from harness.tensors.decoder import find_decoder
from harness.tensors.loading import build_model
from harness.tensors.optimizer_state import state_bytes_of
from tests.real_runs import SCORES, spec_of
from tests.unit.test_grass import loop_of, probed, ran
from tests.unit.test_prediction import LENGTH, ROWS, SMALL, small_spec

TWO_PASSES = {"update_in_backward": True, "two_pass_clipping": True, "max_grad_norm": 0.1}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("grass", {}),
    ("grass", {"update_in_backward": True, "max_grad_norm": None}),
    ("grass", {**TWO_PASSES, "gradient_accumulation_steps": 2}),
    ("lisa", {"returning_step_counter": "keep", "interval_steps": 1, "active_layers": 3}),
    ("owlore", {"returning_step_counter": "reset", "interval_steps": 1, "rank": 4, "update_gap": 2}),
]


def loop(folder: Path, tokenizer: Any, label: str, active_state: str, **changes: Any) -> TrainingLoop:
    """Return a run that is done, the state of its blocks kept on the host."""
    if label == "owlore":
        changes |= {"probability": "uniform", "tau": None}
    changes = {"num_steps": 5, "state_policy": "offload", "active_state": active_state, **changes}
    return ran(*loop_of(folder, tokenizer, label, **changes))


@pytest.mark.parametrize(("label", "changes"), SETTINGS)
def test_where_state_lies_changes_no_bit(label: str, changes: dict[str, Any], tiny_llama: Path, tokenizer: Any) -> None:
    resident = loop(tiny_llama, tokenizer, label, "resident", **changes)
    others = resident.optimizer.state_dict()["state"]
    for active_state in ("offloaded", "prefetched"):
        streamed = loop(tiny_llama, tokenizer, label, active_state, **changes)
        assert streamed.result().curve.loss == resident.result().curve.loss
        for ours, theirs in zip(streamed.model.parameters(), resident.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        states = streamed.optimizer.state_dict()["state"]
        assert states.keys() == others.keys()
        for number, state in states.items():
            assert state.keys() == others[number].keys()
            assert all(torch.equal(torch.as_tensor(state[key]), torch.as_tensor(others[number][key])) for key in state)


@pytest.mark.parametrize("label", ["grass", "lisa"])
def test_state_is_on_the_host_after_each_step_and_counted_there(label: str, tiny_llama: Path, tokenizer: Any) -> None:
    run = loop(tiny_llama, tokenizer, label, "prefetched", moment_dtype="bf16")
    decoder, curve = run.context.decoder, run.result().curve
    others = {id(p) for part in (decoder.embedding, decoder.head, decoder.final_norm) for p in part.parameters()}
    trained = [p for group in run.optimizer.param_groups for p in group["params"]]
    always = sum(2 * 2 * p.numel() for p in trained if id(p) in others)
    assert (always == 0) == (label == "grass")
    assert set(curve.optimizer_state_bytes) == {always}
    seen: set[int] = set()
    wanted = []
    for step in range(len(curve.loss)):
        seen |= {block for entry in run.result().block_activity if entry.step == step for block in entry.blocks}
        wanted.append(sum(2 * 2 * p.numel() for block in seen for p in decoder.blocks[block].parameters()))
    assert list(curve.optimizer_state_host_bytes) == wanted
    assert len(set(wanted)) > 1


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize(("active_state", "most"), [("offloaded", 1), ("prefetched", 2)])
def test_no_more_blocks_are_on_the_device_than_said(
    active_state: str, most: int, in_backward: bool, tiny_llama: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at behind every update; all four blocks are trained, so that a double buffer is less than all."""
    changes = {"active_layers": 4, "update_in_backward": in_backward, "max_grad_norm": None}
    run, data = loop_of(tiny_llama, tokenizer, active_state=active_state, **changes)
    held: list[int] = []
    order: list[int] = []
    block_of = {p: index for index, block in enumerate(run.context.decoder.blocks) for p in block.parameters()}
    update = run.optimizer._update  # type: ignore[attr-defined]

    def watched(p: torch.Tensor) -> None:
        update(p)
        resident = {id(tensor) for tensor in run.optimizer.device_tensors()}
        blocks = {
            block_of[q]
            for q, state in run.optimizer.state.items()
            if any(id(value) in resident for value in state.values() if isinstance(value, torch.Tensor))
        }
        assert block_of[p] in blocks
        held.append(len(blocks))
        order.append(block_of[p])

    monkeypatch.setattr(run.optimizer, "_update", watched)
    probed(run, data)
    run.run(data.step_batches(), lambda done, loss: None)
    assert max(held) == most
    in_a_step = list(dict.fromkeys(order[: len(order) // 8]))
    assert in_a_step == sorted(range(4), reverse=in_backward)
    assert run.optimizer.state_bytes()["device"] == 0


def test_what_orders_copies_and_updates(tiny_llama: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls on streams, with a stand-in for them: no CUDA is here, and none of it is shown to work by this."""
    log: list[str] = []
    run, data = loop_of(tiny_llama, tokenizer, active_state="prefetched", active_layers=3, num_steps=3)
    stream: Any = run.optimizer.stream  # type: ignore[attr-defined]
    copies = stream._copies
    monkeypatch.setattr(copies, "done", lambda: log.append("event") or len(log))
    monkeypatch.setattr(copies, "before_updates", lambda event: log.append(f"updates wait for {log[event - 1]}"))
    monkeypatch.setattr(copies, "after_updates", lambda: log.append("copies wait for updates"))
    to_device, to_host = copies.to_device, copies.to_host
    monkeypatch.setattr(copies, "to_device", lambda host: (log.append("over"), to_device(host))[1])
    monkeypatch.setattr(copies, "to_host", lambda value, host: (log.append("back"), to_host(value, host))[1])
    update = run.optimizer._update  # type: ignore[attr-defined]
    monkeypatch.setattr(run.optimizer, "_update", lambda p: (log.append("update"), update(p)))
    probed(run, data)

    def told(done: int, loss: float) -> None:
        if done == 1:  # the first step has nothing to bring over
            log.clear()

    run.run(data.step_batches(), told)
    short = [entry for i, entry in enumerate(log) if i == 0 or log[i - 1] != entry]
    one = ["over", "event", "updates wait for event"]
    behind = ["update", "copies wait for updates", "back"]
    wanted = [
        *one, "over", "event", *behind,
        "updates wait for event", "over", "event", *behind,
        "updates wait for event", *behind,
    ]  # fmt: skip
    assert short[: len(wanted)] == wanted


def predicted(spec: Any, device: Any = "cpu", **question: Any) -> Prediction:
    return predict(spec, SMALL, Question(device, **question), lambda request: SCORES)


@pytest.mark.parametrize(("active_state", "in_backward"), [("offloaded", False), ("prefetched", True)])
def test_the_tracker_of_a_real_step_sees_what_is_predicted(active_state: str, in_backward: bool) -> None:
    spec = small_spec("grass", **({"max_grad_norm": None} if in_backward else {}))
    changed = {"active_state": active_state, "active_layers": 3, "update_in_backward": in_backward}
    spec = spec.model_copy(update={"config": spec.config | changed})
    told = predicted(spec, num_steps=4)
    model = build_model(SMALL, "fp32", torch.device("cpu"))
    decoder = find_decoder(model, SMALL)
    assert spec.train is not None
    context = EngineContext(seed=1, num_steps=4, train=spec.train, decoder=decoder)
    enable_checkpointing(model, decoder, spec.train)
    method = METHODS.get("grass")(METHODS.get("grass").Config.model_validate(spec.config))
    trained = method.prepare(model, context)
    real = TrainingLoop(trained, method, method.build_optimizer(trained, context), context)
    batch = collate([Example(tuple(range(LENGTH)), (True,) * LENGTH)] * ROWS, 0)
    trained.train()
    for blocks in ([1, 2, 3], [0, 2, 3]):
        method.visit(blocks, real.optimizer)
        with real.memory.step(real.step):
            real.train_step([real.placed(batch)])
        real.step += 1
    peak = real.memory.tracked_peak
    assert peak is not None
    most = 1 if active_state == "offloaded" else 2
    block = sum(4 * p.numel() for p in decoder.blocks[0].parameters())
    assert told.streamed_state_bytes == 2 * block * most
    assert told.optimizer_state_bytes == real.optimizer.state_bytes()["device"] == 0
    assert told.optimizer_state_host_bytes == real.optimizer.state_bytes()["host"] == 4 * 2 * block
    assert told.at_peak.optimizer_state_bytes == peak.at_peak.optimizer_state_bytes
    assert told.at_peak.gradients_bytes == peak.at_peak.gradients_bytes
    assert told.peak_bytes == pytest.approx(peak.at_peak.total_bytes, rel=0.01)


SEVEN_B = [
    ({"active_state": "resident"}, 15.91, 24.29),
    ({"active_state": "offloaded"}, 15.10, 25.91),
    ({"active_state": "offloaded", "active_layers": 4}, 15.91, 25.91),
    ({"active_state": "prefetched"}, 15.91, 25.91),
]
"""Arithmetic in GB: weights 13.477, gradients 0.405 a block, moments on the device 0.810 a block; and on the host those
of all 32 blocks once visited, less the two that are resident."""


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "static", "host"), SEVEN_B)
def test_a_plan_of_7b_is_the_arithmetic(settings: dict[str, Any], static: float, host: float) -> None:
    entry = load_models()["llama2-7b"]
    spec = spec_of("grass", entry, settings, batch_size=1, sequence_length=16)
    found = predict(spec, entry, Question("cuda", "all-visited"), lambda request: None)
    assert found.optimizer_state_host_bytes is not None
    assert found.static_bytes / 1e9 == pytest.approx(static, rel=0.005)
    assert found.optimizer_state_host_bytes / 1e9 == pytest.approx(host, rel=0.005)


@pytest.mark.slow
def test_the_probe_of_7b_holds_less_than_one_blocks_gradients() -> None:
    """13.9 GB with one block's; each parameter's gradient is freed as it completes, so the most is the largest ones'.

    Without the hook all blocks' coexist: 26.4 GB, which the arithmetic has beside it.
    """
    entry = load_models()["llama2-7b"]
    spec = spec_of("grass", entry, {}, batch_size=1, sequence_length=16)
    run = FakeRun(spec, entry, device="cuda", num_steps=4, block_scores=lambda request, number: SCORES)
    run.tracker.take()
    span = run.probe()
    assert span is not None
    live = most = 0
    for event in span.events:
        if event.category == "gradients":
            live += event.num_bytes
            most = max(most, live)
    weights = span.start["weights"]
    block = sum(2 * p.numel() for p in run.decoder.blocks[0].parameters())
    assert (weights + block) / 1e9 == pytest.approx(13.88, rel=0.005)
    assert (weights + 32 * block) / 1e9 == pytest.approx(26.43, rel=0.005)
    assert most == 2 * 4096 * 11008 < block
    assert sum(state_bytes_of(run.optimizer, p) for p in run.active()) == 0


def test_streams_and_pinning_are_for_cuda_alone(tiny_llama: Path, tokenizer: Any) -> None:
    copies = _state_stream._Copies(torch.device("cpu"))
    assert copies._stream is None
    assert copies.done() is None
    host = torch.ones(3)
    assert copies.pinned(host) is host
    value = copies.to_device(host)
    assert torch.equal(value, host)
    assert value.data_ptr() != host.data_ptr()  # a copy, so that a test on a CPU sees what is not written back
    assert copies.to_host(value.mul_(2), host) is host
    assert host.tolist() == [2.0, 2.0, 2.0]
    assert copies.to_host(value.double(), host) is not host
