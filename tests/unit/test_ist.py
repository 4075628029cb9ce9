"""IST against the published arithmetic, and what it must leave as it is: base weights, rows, scalings, modes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit

from harness.catalogue.models import load_models
from harness.engine import training
from harness.engine.checkpoint import Checkpoints
from harness.engine.step_memory import StepMemory
from harness.engine.stepping import Diverged
from harness.errors import Refused
from harness.methods._importance import sigmoid, suppressed_sets, updated_importance
from harness.methods.ist import adapters_of, suppressed
from harness.planning.predict import Question, predict
from harness.proof import judge_record
from harness.record import Record
from tests.proofs import record_of, task_of
from tests.real_runs import peak_of_real_run, spec_of
from tests.unit.test_prediction import LENGTH, ROWS, SMALL, small_spec
from tests.unit.test_training import build, train

Array = NDArray[np.floating[Any]]


class Script:
    """A generator that draws what it is told, and keeps the weights that it is given."""

    def __init__(self, draws: Sequence[Sequence[int]]) -> None:
        self.left = list(draws)
        self.weights: list[list[float]] = []

    def choice(self, a: int, size: int, *, replace: bool, p: Sequence[float]) -> Sequence[int]:
        assert not replace
        self.weights.append(list(p))
        return self.left.pop(0)


def oracle(importance: Array, masks: Array, losses: Array, rate: float) -> Array:
    """Return the importance after one look, in the dtype given; ``masks`` (sets, blocks) is 1 where suppressed."""
    reward = np.exp(-losses)
    reward = reward - reward.mean()
    p = 1 / (1 + np.exp(-importance))
    return np.asarray(importance + (rate * reward[:, None] * masks * p * (1 - p)).sum(0), dtype=importance.dtype)


def masks_of(sets: Sequence[Sequence[int]], blocks: int) -> Array:
    return np.array([[float(block in drawn) for block in range(blocks)] for drawn in sets])


# The arithmetic


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-14), (np.float32, 2e-6)])
def test_the_importance_is_the_published_arithmetic_over_many_looks(dtype: Any, tolerance: float) -> None:
    generator, ours, theirs = np.random.default_rng(3), [0.0] * 32, np.zeros(32, dtype)
    for _ in range(40):
        sets = suppressed_sets(ours, 16, 3, generator)
        losses = generator.uniform(0.2, 4.0, 3)
        theirs = oracle(theirs, masks_of(sets, 32).astype(dtype), losses.astype(dtype), 10.0)
        ours = updated_importance(ours, sets, losses.tolist(), 10.0)
    assert max(map(abs, ours)) > 1.0
    assert ours == pytest.approx(theirs, abs=tolerance)


def test_one_look_by_hand() -> None:
    """p = 1/2 everywhere, rewards 1/2 and 1/4, so that centred ones are 1/8 and -1/8: 10 / 8 / 4 either way."""
    found = updated_importance([0.0] * 4, [[0, 1], [1, 2]], [np.log(2.0), np.log(4.0)], 10.0)
    assert found == pytest.approx([0.3125, 0.0, -0.3125, 0.0])


def test_probabilities_are_those_of_before_the_look() -> None:
    """A block of both sets gets two terms with one p: had the first moved it, the second would not cancel it."""
    found = updated_importance([1.5], [[0], [0]], [0.1, 2.0], 10.0)
    assert found == pytest.approx([1.5], abs=1e-12)


def test_equal_losses_and_blocks_never_suppressed_change_nothing() -> None:
    before = [0.3, -1.0, 2.0, 0.0]
    assert updated_importance(before, [[0, 1], [2, 3], [0, 3]], [1.7] * 3, 10.0) == before
    after = updated_importance([0.0] * 4, [[0, 1], [1, 2], [0, 2]], [0.5, 1.0, 3.0], 10.0)
    assert after[3] == 0.0
    assert all(after[:3])


def test_each_set_alone_with_every_block_moves_by_centred_rewards_that_sum_to_zero() -> None:
    found = updated_importance([0.0] * 3, [[0], [1], [2]], [0.1, 0.9, 2.2], 10.0)
    assert sum(found) == pytest.approx(0.0, abs=1e-12)
    assert found[0] > found[1] > found[2]  # harmless when suppressed: a high importance


def test_a_set_that_equals_an_earlier_one_is_drawn_again() -> None:
    script = Script([[0, 1], [1, 0], [2, 3], [0, 1], [3, 2], [1, 2]])
    assert suppressed_sets([2.0, 0.0, 0.0, -2.0], 2, 3, script) == [[0, 1], [2, 3], [1, 2]]  # type: ignore[arg-type]
    weights = expit([2.0, 0.0, 0.0, -2.0])
    assert script.weights == [pytest.approx(weights / weights.sum())] * 6


def test_sets_follow_the_multinomial_law_of_the_reference() -> None:
    """torch's multinomial without replacement, as the released code draws, against numpy's choice."""
    importance = [1.5, 0.0, -1.0, 0.5]
    generator, torch_generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    first = [suppressed_sets(importance, 2, 2, generator)[0] for _ in range(3000)]
    weights = torch.tensor(importance).sigmoid().expand(3000, 4)
    theirs = torch.multinomial(weights, 2, replacement=False, generator=torch_generator).tolist()
    for pair in combinations(range(4), 2):
        ours, wanted = (sum(set(drawn) == set(pair) for drawn in one) / 3000 for one in (first, theirs))
        assert ours == pytest.approx(wanted, abs=0.04)  # over 3 standard deviations of the difference


def test_the_sigmoid_does_not_overflow() -> None:
    assert [sigmoid(x) for x in (-800.0, -3.0, 0.0, 3.0, 800.0)] == pytest.approx(
        expit([-800.0, -3.0, 0.0, 3.0, 800.0])
    )


# In a run


def recomputed(proof: dict[str, Any], blocks: int = 4) -> list[Array]:
    """Return the importance after each look, from what the proof says was suppressed and what the losses were."""
    found = [np.zeros(blocks)]
    for look in proof["looks"]:
        found.append(oracle(found[-1], masks_of(look["suppressed"], blocks), np.array(look["losses"]), 10.0))
    return found


@pytest.mark.parametrize(("interval", "draws"), [(1, [0, 1, 2, 3, 4, 5, 6, 7]), (3, [0, 3, 6])])
def test_the_record_tells_draws_probabilities_and_importance(
    interval: int, draws: list[int], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code's timing, a draw at every step, and the paper's, a draw for each look."""
    changes = {"interval_steps": interval, "score_interval": 3, "score_rows": 4, "lora_dropout": 0.2}
    record = record_of(task_of("ist", tiny_llama, tmp_path, **changes), monkeypatch)
    judgement = judge_record(record)
    assert judgement is not None and judgement.is_whole, judgement
    assert record.proof is not None
    proof: Any = record.proof.method
    assert [look["step"] for look in proof["looks"]] == [3, 6]
    assert [draw["step"] for draw in proof["draws"]] == draws
    importance = recomputed(proof)
    assert proof["importance"] == pytest.approx(importance[-1], abs=1e-12)
    assert any(proof["importance"])
    history = [(entry["step"], entry["probabilities"]) for entry in proof["probability_history"]]
    wanted = [expit(-one) / expit(-one).sum() for one in importance]
    assert [step for step, _ in history] == [0, 3, 6]
    assert [found for _, found in history] == [pytest.approx(one) for one in wanted]
    assert proof["probability"] == "importance"
    declared = record.proof.declared
    assert declared is not None and declared.sampling is not None
    assert (declared.sampling.num_active, declared.sampling.interval_steps) == (2, interval)


def test_a_look_at_more_rows_than_there_are_is_refused(tiny_llama: Path, tokenizer: Any) -> None:
    _, _, data = build("ist", tiny_llama, tokenizer)
    data.refuse_more_rows_at_once(len(data))
    with pytest.raises(
        Refused, match=rf"loss of {len(data) + 1} training rows at once, and data set '.*' has {len(data)} "
    ):
        data.refuse_more_rows_at_once(len(data) + 1)


def test_a_look_takes_the_loss_of_rows_of_its_own_under_suppression(tiny_llama: Path, tokenizer: Any) -> None:
    loop, decoder, data = build("ist", tiny_llama, tokenizer, settings={"lora_dropout": 0.5, "score_rows": 5})
    batches = data.step_batches()
    for _ in range(2):
        loop.train_step(next(batches))
        loop.step += 1
    twin = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    loop.stepping.begin_step(2)
    (look,) = loop.method.proof()["looks"]
    rows = data.stream_batch("importance_rows", 0, 5)
    assert sorted(rows.input_ids.shape) == sorted((5, rows.input_ids.shape[1]))
    assert all(torch.equal(p, twin[name]) for name, p in loop.model.named_parameters())
    loop.model.eval()
    scalings = {id(layer): dict(layer.scaling) for block in decoder.blocks for layer in adapters_of(block)}
    for drawn, loss in zip(look["suppressed"], look["losses"], strict=True):
        for block in drawn:
            for layer in adapters_of(decoder.blocks[block]):
                layer.scaling["default"] = scalings[id(layer)]["default"] / 4
        with torch.no_grad():
            logits = loop.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
        for block in drawn:
            for layer in adapters_of(decoder.blocks[block]):
                layer.scaling.update(scalings[id(layer)])
        plain = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), rows.labels[:, 1:].flatten())
        assert loss == pytest.approx(float(plain), rel=1e-6)


def test_what_suppresses_nothing_changes_no_bit_of_a_run(tiny_llama: Path, tokenizer: Any) -> None:
    """With factor 1 all losses are equal and the importance stays 0: draws, dropout and rows are as without looks."""
    changes: dict[str, Any] = {"num_steps": 6, "max_grad_norm": None}
    weights, results = [], []
    for settings in ({"suppression": 1.0, "score_interval": 2}, {"score_interval": 100}):
        result, _, loop = train("ist", tiny_llama, tokenizer, settings={"lora_dropout": 0.3, **settings}, **changes)
        weights.append([p.detach() for p in loop.model.parameters()])
        results.append((result.curve.loss, result.block_activity, loop.method.proof()["importance"]))
    assert len(loop.method.proof()["looks"]) == 0
    assert results[0] == results[1]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_look_is_in_the_time_of_its_step(tiny_llama: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def pass_of_a_second(*_: Any) -> float:
        clock[0] += 1.0
        return 2.0

    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(training, "inference_loss", pass_of_a_second)
    result, _, _ = train("ist", tiny_llama, tokenizer, num_steps=5)
    assert result.curve.seconds == (0.0, 0.0, 3.0, 0.0, 3.0)


def test_scalings_modes_and_gradients_are_as_before_even_where_a_look_fails(tiny_llama: Path, tokenizer: Any) -> None:
    loop, decoder, data = build("ist", tiny_llama, tokenizer)
    loop.train_step(next(data.step_batches()))
    layers = [layer for block in decoder.blocks for layer in adapters_of(block)]
    layers[0].scaling["default"] = 0.123  # of its own, as rank patterns make them
    loop.model.model.model.layers[1].eval()

    def state() -> list[Any]:
        modes = [module.training for module in loop.model.modules()]
        flags = [(p.requires_grad, p.grad is None) for p in loop.model.parameters()]
        return [[dict(layer.scaling) for layer in layers], modes, flags]

    before = state()
    loop.method._look(2)
    assert state() == before
    with torch.no_grad():
        decoder.final_norm.weight.fill_(torch.nan)
    with pytest.raises(Diverged, match="the loss is nan in a forward pass of the method's own, before the step"):
        loop.method._look(4)
    assert state() == before
    assert torch.is_grad_enabled()
    with pytest.raises(KeyError), suppressed(decoder.blocks[:2], 0.25):
        assert layers[0].scaling["default"] == pytest.approx(0.123 / 4)
        raise KeyError
    assert state() == before


def test_base_weights_never_require_gradients(tiny_llama: Path, tokenizer: Any) -> None:
    loop, _, data = build("ist", tiny_llama, tokenizer, settings={"interval_steps": 1})
    batches = data.step_batches()
    for step in range(5):
        loop.train_step(next(batches))
        loop.step += 1
        required = {name for name, p in loop.model.named_parameters() if p.requires_grad}
        assert required
        assert all("lora_" in name for name in required)
        drawn = loop.method.proof()["draws"][step]["blocks"]
        assert {int(name.split("layers.")[1].split(".")[0]) for name in required} == set(drawn)


@pytest.mark.parametrize("policy", ["keep", "drop"])
def test_state_bytes_over_many_draws_are_the_predicted_ones(policy: str, tiny_llama: Path, tokenizer: Any) -> None:
    settings = {"interval_steps": 1, "state_policy": policy, "score_interval": 4}
    result, _, loop = train("ist", tiny_llama, tokenizer, num_steps=20, settings=settings, max_grad_norm=None)
    each = {
        sum(2 * 4 * p.numel() for n, p in b.named_parameters() if "lora_" in n) for b in loop.context.decoder.blocks
    }
    (block,) = each
    visited: set[int] = set()
    wanted = []
    for draw in loop.method.proof()["draws"]:
        visited |= set(draw["blocks"])
        wanted.append(block * len(visited if policy == "keep" else draw["blocks"]))
    assert list(result.curve.optimizer_state_bytes) == wanted
    assert len(visited) == 4


def test_rows_of_a_look_and_its_sets_are_the_same_after_a_resume(
    tiny_llama: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """Through a checkpoint of the engine, in the step after a look."""
    settings = {"score_interval": 2, "score_rows": 3, "interval_steps": 1}
    ended = []
    for stop in (None, 3):
        loop, _, data = build("ist", tiny_llama, tokenizer, num_steps=7, settings=settings)
        if stop is not None:
            part, _, _ = build("ist", tiny_llama, tokenizer, num_steps=7, settings=settings)
            checkpoints = Checkpoints(tmp_path / "checkpoints", part)
            with pytest.raises(KeyboardInterrupt):
                part.run(data.step_batches(), stop_at(stop), checkpoints.save, stop)
            assert Checkpoints(tmp_path / "checkpoints", loop).restore() == stop
        loop.run(data.step_batches(loop.step), lambda done, loss: None)
        ended.append((loop.method.state_dict(), [p.detach() for p in loop.model.parameters()]))
    assert len(ended[0][0]["looks"]) == 3
    assert ended[0][0] == ended[1][0]
    assert all(torch.equal(a, b) for a, b in zip(ended[0][1], ended[1][1], strict=True))


def stop_at(step: int) -> Any:
    def on_step(done: int, loss: float) -> None:
        if done == step + 1:
            raise KeyboardInterrupt

    return on_step


def test_an_adapter_of_a_block_that_was_never_drawn_need_not_move_and_must_not(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of("ist", tiny_llama, tmp_path, num_steps=2, active_share=0.25, interval_steps=2)
    record = record_of(task, monkeypatch)
    assert record.status == "ok" and record.proof is not None
    reported: Any = record.proof.method["adapters"]
    assert len(reported["moved"]) == 5
    idle = next(name for name in reported["found"] if name not in reported["moved"])
    moved = {**reported, "moved": [*reported["moved"], idle]}
    proof = record.proof.model_copy(update={"method": {**record.proof.method, "adapters": moved}})
    judgement = judge_record(Record.model_validate({**record.model_dump(), "proof": proof.model_dump()}))
    assert judgement is not None
    assert [check.sentence for check in judgement.failed] == [f"the adapter of {idle} moved without being trained"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"active_share": 0.2}, "active_share = 0.2 of 4 blocks is none of them: raise it"),
        ({"suppressed_share": 0.1}, "suppressed_share = 0.1 of 4 blocks is none of them: raise it"),
        ({"suppressed_share": 1.0}, "score_sets = 3 asks for as many different sets of 4 of 4 blocks, and there are 1"),
        ({"target_modules": ("layers.1.mlp.down_proj",)}, "ist draws blocks by their adapters, and .*0 has none"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    settings: dict[str, Any], sentence: str, tiny_llama: Path, tokenizer: Any
) -> None:
    with pytest.raises(Refused, match=sentence):
        build("ist", tiny_llama, tokenizer, settings=settings)


# Memory


def ist_spec(**changes: Any) -> Any:
    own = {key: value for key, value in changes.items() if key in ("score_rows", "score_interval", "active_share")}
    of_training = {key: value for key, value in changes.items() if key not in own}
    spec = small_spec("ist", gradient_checkpointing=False, **of_training)
    return spec.model_copy(update={"config": spec.config | own})


def planned(spec: Any, **question: Any) -> Any:
    asked = {"device": "cpu", "horizon": "run", "num_steps": 4, **question}
    return predict(spec, SMALL, Question(**asked), lambda request: None)


def test_the_peak_of_a_look_is_predicted_and_is_the_allocators_own() -> None:
    """Many rows are scored: the pass without gradients is the peak of the run."""
    spec = ist_spec(score_rows=40, score_interval=2)
    told = planned(spec)
    assert told.peak_phase == "inference"
    assert told.peak_bytes == pytest.approx(peak_of_real_run(spec, SMALL, [LENGTH] * ROWS), rel=0.01)
    assert planned(spec, num_steps=2).peak_phase != "inference"  # there is none before the first step, nor in the next
    assert planned(spec, horizon="first").peak_phase != "inference"


def test_the_record_shows_the_look_as_a_moment(tiny_llama: Path, tokenizer: Any) -> None:
    settings = {"score_rows": 30, "score_interval": 2}
    watched = lambda model, optimizer: StepMemory(model, optimizer, 3)  # noqa: E731
    result, _, _ = train("ist", tiny_llama, tokenizer, settings=settings, watched=watched)
    assert result.tracked_peak is not None
    assert (result.tracked_peak.moment, result.tracked_peak.step) == ("inference", 2)
    assert result.tracked_peak.at_peak.gradients_bytes == 0
    assert result.tracked_peak.at_peak.activations_bytes > 0


def test_operations_of_looks_are_spread_over_the_steps() -> None:
    """Three passes every few steps, each of as many rows as a step takes."""
    steps = {every: planned(ist_spec(score_interval=every, score_rows=ROWS), num_steps=9) for every in (2, 4, 100)}
    more = [steps[every].flops_per_step - steps[100].flops_per_step for every in (2, 4)]
    assert more[0] == 2 * more[1]
    forward = more[1] * 4 / 3
    assert 2 * forward < steps[100].flops_per_step < 3 * forward  # no gradient of a frozen weight


def test_planning_takes_the_draw_from_which_gradients_go_furthest_down() -> None:
    """Nothing is trained below the blocks: what a step keeps depends on the first block that is drawn."""
    spec = ist_spec(active_share=0.5)
    told = planned(spec)

    def always(blocks: list[int]) -> Any:
        def spoil(loop: Any) -> None:
            loop.method._sampler._draw = lambda: blocks

        return spoil

    first, last = (peak_of_real_run(spec, SMALL, [LENGTH] * ROWS, spoil=always(blocks)) for blocks in ([0, 3], [2, 3]))
    assert first > 1.2 * last
    assert told.peak_bytes - first == pytest.approx(told.optimizer_state_bytes / 2, rel=0.02)  # all four were visited


@pytest.mark.slow
def test_static_memory_of_7b_is_the_arithmetic() -> None:
    """LLaMA-2-7B, rank 32, five targets: 56,098,816 adapter elements in fp32, 8 of 32 blocks trained, states kept."""
    entry = load_models()["llama2-7b"]
    spec = spec_of("ist", entry, {}, batch_size=1, sequence_length=16)
    told = predict(spec, entry, Question("cuda", "all-visited"), lambda request: None)
    assert told.trainable_params == 14_024_704
    adapters = told.weights_bytes / 1e9 - 13.477
    assert adapters == pytest.approx(0.224, rel=0.005)
    assert told.gradients_bytes / 1e9 == pytest.approx(0.056, rel=0.005)
    assert told.optimizer_state_bytes / 1e9 == pytest.approx(0.449, rel=0.005)
    assert told.static_bytes / 1e9 == pytest.approx(14.206, rel=0.005)
