"""GRASS against closed forms: means, softmax, probe, stages, the static variant, inclusion, and a resume in a stage."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import softmax

from harness.catalogue.labels import load_labels
from harness.catalogue.models import BaseModelSpec
from harness.data.batches import TrainData
from harness.engine.checkpoint import Checkpoints
from harness.engine.context import EngineContext
from harness.engine.training import TrainingLoop
from harness.errors import Refused
from harness.method import METHODS
from harness.methods._inclusion import successive_sampling
from harness.methods.grass import GrassConfig, layer_probabilities, next_means
from harness.settings import TrainSettings
from harness.tensors.decoder import find_decoder
from harness.tensors.loading import load_model
from tests.proofs import record_of, task_of
from tests.records import TRAIN
from tests.unit.test_gradients_seen import expected
from tests.unit.test_training import ROWS

SMALL = {"active_layers": 2, "interval_steps": 2, "probe_batches": 2, "stage_steps": 3, "new_share": 0.25}


def config_of(label: str = "grass", **changes: Any) -> Any:
    entry = load_labels()[label]
    return METHODS.get(entry.method).Config.model_validate({**entry.values(), **SMALL, **changes})


def loop_of(folder: Path, tokenizer: Any, label: str = "grass", **changes: Any) -> tuple[TrainingLoop, TrainData]:
    """Return loop and data; what is no setting of training is the method's own."""
    of_training = {key: value for key, value in changes.items() if key in TrainSettings.model_fields}
    own = {key: value for key, value in changes.items() if key not in of_training}
    train = TRAIN.model_copy(update={"num_steps": 8, "learning_rate": 1e-2, "warmup_steps": 2, **of_training})
    method_class, entry = METHODS.get(load_labels()[label].method), load_labels()[label]
    known = {k: v for k, v in {**entry.values(), **SMALL, **own}.items() if k in method_class.Config.model_fields}
    method = method_class(method_class.Config.model_validate(known))
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


def ran(loop: TrainingLoop, data: TrainData) -> TrainingLoop:
    if loop.method.probe_needed() is not None:
        probed(loop, data)
    loop.run(data.step_batches(), lambda done, loss: None)
    return loop


def rms_by_block(loop: TrainingLoop, micro_batches: Any) -> list[float]:
    """Return the root mean square of each block's gradient elements, by autograd alone."""
    before = [p.requires_grad for p in loop.model.parameters()]
    loop.model.requires_grad_(True)
    norms = expected(loop, micro_batches)
    for p, trained in zip(loop.model.parameters(), before, strict=True):
        p.requires_grad_(trained)
    found = []
    for index, block in enumerate(loop.context.decoder.blocks):
        size = sum(p.numel() for p in block.parameters())
        found.append(math.sqrt(sum(v for k, v in norms.items() if k.startswith(f"model.layers.{index}.")) / size))
    return found


def proof_of(loop: TrainingLoop) -> Any:
    return loop.method.proof()


def test_means_of_two_stages_by_hand() -> None:
    probe = next_means(None, {0: 4.0, 1: 2.0, 2: 1.0}, 0.25, 3)
    assert probe == [4.0, 2.0, 1.0]  # taken whole, whatever the share
    first = next_means(probe, {0: 8.0, 2: 3.0}, 0.25, 3)
    assert first == [5.0, 2.0, 1.5]  # 0.25 * 8 + 0.75 * 4; frozen; 0.25 * 3 + 0.75 * 1
    assert next_means(first, {1: 0.0}, 0.25, 3) == [5.0, 1.5, 1.5]
    assert next_means(first, {1: 7.0}, 1.0, 3) == [5.0, 7.0, 1.5]


@pytest.mark.parametrize(("normalise", "divisor"), [("none", 1.0), ("mean", 2.5), ("max", 5.0), ("sum", 10.0)])
@pytest.mark.parametrize("temperature", [0.01, 0.5, 3.0])
def test_probabilities_are_scipys_softmax(normalise: Any, divisor: float, temperature: float) -> None:
    means = [1.0, 5.0, 3.5, 0.5]
    found = layer_probabilities(means, temperature, normalise)
    assert found == pytest.approx(softmax(np.asarray(means) / divisor / temperature), rel=1e-12, abs=1e-300)


def test_a_divisor_makes_probabilities_independent_of_the_size_of_gradients() -> None:
    means = [2.7e-4, 1.3e-3, 6e-4]
    for normalise in ("mean", "max", "sum"):
        one = layer_probabilities(means, 0.5, normalise)  # type: ignore[arg-type]
        assert layer_probabilities([1e4 * m for m in means], 0.5, normalise) == pytest.approx(one)  # type: ignore[arg-type]
    ratio = [max(p) / min(p) for p in (layer_probabilities(means, t, "none") for t in (1.0, 1e-4))]
    assert ratio[0] == pytest.approx(1.001, abs=1e-4)  # uniform where the temperature is in other units
    assert ratio[1] == pytest.approx(math.exp(10.3), rel=1e-9)


def test_the_temperatures_limits_are_uniform_and_the_largest() -> None:
    means = [1.0, 5.0, 3.5, 0.5]
    assert layer_probabilities(means, 1e9, "none") == pytest.approx([0.25] * 4, rel=1e-8)
    assert layer_probabilities(means, 1e-3, "none") == [0.0, 1.0, 0.0, 0.0]
    assert layer_probabilities([0.0] * 4, 0.5, "mean") == [0.25] * 4  # no gradient anywhere
    with pytest.raises(Refused, match="not all finite"):
        layer_probabilities([1.0, math.nan], 0.5, "mean")


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_probe_moves_nothing_and_the_first_step_is_step_0(
    in_backward: bool, tiny_llama: Path, tokenizer: Any
) -> None:
    loop, data = loop_of(tiny_llama, tokenizer, update_in_backward=in_backward, max_grad_norm=None)
    before = [p.detach().clone() for p in loop.model.parameters()]
    schedule = loop.stepping.state_dict()
    batches = data.step_batches()
    found = [rms_by_block(loop, [loop.placed(one) for one in next(batches)]) for _ in range(2)]
    probed(loop, data)
    assert all(torch.equal(p, weight) for p, weight in zip(loop.model.parameters(), before, strict=True))
    assert not loop.optimizer.state
    assert loop.stepping.state_dict() == schedule
    loop.run(data.step_batches(), lambda done, loss: None)
    result, means = loop.result(), [sum(pair) / 2 for pair in zip(*found, strict=True)]
    assert result.curve.learning_rate[:3] == (0.0, 0.005, 0.01)
    assert result.probe is not None
    assert (result.probe.num_passes, result.num_steps) == (2, 8)
    history = proof_of(loop)["gradient_means"]
    assert [entry["step"] for entry in history] == [0, 3, 6]
    assert history[0]["means"] == pytest.approx(means, rel=1e-4)
    changes = proof_of(loop)["probability_history"]
    assert [entry["step"] for entry in changes] == [0, 0, 3, 6]
    assert changes[0]["probabilities"] == [0.25] * 4
    for entry, change in zip(history, changes[1:], strict=True):
        scaled = np.asarray(entry["means"]) / np.mean(entry["means"])
        assert change["probabilities"] == pytest.approx(softmax(scaled / 0.5), rel=1e-9)


@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 2, "batch_size": 2}])
def test_a_stage_takes_what_was_trained_in_it_before_clipping(
    changes: dict[str, Any], tiny_llama: Path, tokenizer: Any
) -> None:
    loop, data = loop_of(tiny_llama, tokenizer, num_steps=4, warmup_steps=0, max_grad_norm=1e-3, **changes)
    probed(loop, data)
    batches = data.step_batches()
    seen: dict[int, list[float]] = {}
    for step in range(4):
        micro_batches = [loop.placed(batch) for batch in next(batches)]
        loop.stepping.begin_step(step)
        if step < 3:
            rms = rms_by_block(loop, micro_batches)
            for block in next(d["blocks"] for d in reversed(proof_of(loop)["draws"]) if d["step"] <= step):
                seen.setdefault(block, []).append(rms[block])
        loop.stepping.take_step(step, micro_batches)
    before, after = (entry["means"] for entry in proof_of(loop)["gradient_means"])
    assert 2 <= len(seen) < 5
    for block, old in enumerate(before):
        if block in seen:
            wanted = 0.25 * sum(seen[block]) / len(seen[block]) + 0.75 * old
            assert after[block] == pytest.approx(wanted, rel=1e-4)
            assert after[block] != old
        else:
            assert after[block] == old


@pytest.mark.parametrize("at", [2, 4])
def test_a_resume_in_the_middle_of_a_stage_ends_in_the_same_bits(
    at: int, tiny_llama: Path, tokenizer: Any, tmp_path: Path
) -> None:
    whole = ran(*loop_of(tiny_llama, tokenizer))
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
    assert second.result().curve.loss == whole.result().curve.loss
    assert proof_of(second) == proof_of(whole)
    assert second.optimizer.state_bytes() == whole.optimizer.state_bytes()
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_static_variant_is_the_sampler_with_a_file(tiny_llama: Path, tokenizer: Any, tmp_path: Path) -> None:
    static = ran(*loop_of(tiny_llama, tokenizer, stage_steps="none", interval_steps=1))
    proof = proof_of(static)
    assert [entry["step"] for entry in proof["gradient_means"]] == [0]
    file = tmp_path / "probabilities.txt"
    file.write_text("\n".join(repr(100.0 * p) for p in proof["probabilities"]), encoding="utf-8")
    shared = {"interval_steps": 1, "moment_dtype": "bf16", "state_policy": "keep", "returning_step_counter": "keep"}
    frozen = {"train_embedding": False, "train_head": False, "train_final_norm": False}
    by_file = {"probability": "file", "probability_file": str(file)}
    other = ran(*loop_of(tiny_llama, tokenizer, "lisa", **shared, **frozen, **by_file))
    assert proof["draws"] == proof_of(other)["draws"]
    assert len({tuple(draw["blocks"]) for draw in proof["draws"]}) > 2
    for ours, theirs in zip(static.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_blocks_come_as_often_as_successive_sampling_says(tiny_llama: Path, tokenizer: Any) -> None:
    loop, data = loop_of(tiny_llama, tokenizer, stage_steps="none", temperature=0.2)
    probed(loop, data)
    loop.stepping.begin_step(0)
    sampler: Any = loop.method._sampler  # type: ignore[attr-defined]
    number = 4000
    drawn = np.bincount([block for _ in range(number) for block in sampler._draw()], minlength=4) / number
    chances = successive_sampling(proof_of(loop)["probabilities"], 2)
    assert max(chances) > 1.5 * min(chances)
    for found, chance in zip(drawn, chances, strict=True):
        assert abs(found - chance) < 4.0 * math.sqrt(chance * (1.0 - chance) / number)


def test_a_temperature_that_leaves_too_few_blocks_is_refused(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows at the first draw, behind the probe, and the record says so in one sentence."""
    record = record_of(task_of("grass", tiny_llama, tmp_path, temperature=1e-6, probe_batches=1), monkeypatch)
    assert record.status == "refused"
    assert record.reason == (
        "temperature = 1e-06 with normalise = 'mean' leaves 1 of 4 blocks with a probability above 0 at step 0, but "
        "active_layers = 2 are drawn: raise the temperature"
    )
    assert record.phase("probe") is not None


@pytest.mark.parametrize(
    ("label", "changes", "message"),
    [
        ("grass", {"sampling": "tour"}, "takes blocks in turn, whatever their gradients"),
        ("grass", {"probability": "uniform"}, "gradient_norm"),
        ("grass", {"temperature": 0.0}, "greater than 0"),
        ("grass", {"normalise": "median"}, "'none', 'mean', 'max' or 'sum'"),
        ("grass", {"new_share": 0.0}, "greater than 0"),
        ("grass", {"state_policy": "keep"}, "keeps the state of every block on the host: set state_policy = 'offload'"),
        ("lisa", {"probability": "gradient_norm"}, "use the label grass"),
        ("lisa", {"active_state": "prefetched"}, "set state_policy = 'offload', not 'keep'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(label: str, changes: dict[str, Any], message: str) -> None:
    entry = load_labels()[label]
    with pytest.raises(ValidationError, match=message):
        METHODS.get(entry.method).Config.model_validate({**entry.values(), **changes})


@pytest.mark.parametrize("missing", ["normalise", "temperature", "new_share", "stage_steps", "probe_batches"])
def test_no_setting_that_decides_has_a_default(missing: str) -> None:
    values = config_of().model_dump()
    del values[missing]
    with pytest.raises(ValidationError, match="Field required"):
        GrassConfig.model_validate(values)


def test_a_cycle_holds_whole_periods_and_whole_stages() -> None:
    grass = METHODS.get("grass")
    assert grass(config_of(interval_steps=25, stage_steps=100)).cycle_steps() == 100
    assert grass(config_of(interval_steps=4, stage_steps=6)).cycle_steps() == 12
    assert grass(config_of(interval_steps=4, stage_steps="none")).cycle_steps() == 4


def test_its_label_claims_nothing_that_was_not_read() -> None:
    """No code was released: a source of ``code`` would be made up, and what is the paper's is second-hand."""
    settings = load_labels()["grass"].settings
    assert {entry["source"] for entry in settings.values()} == {"paper", "ours"}
    assert all("second-hand" in entry["note"] for entry in settings.values() if entry["source"] == "paper")
    folder = Path(__file__).parents[2] / "results" / "paper"
    assert folder.is_dir()
    tables = [file.read_text(encoding="utf-8").lower() for file in folder.rglob("*.csv")]
    assert tables and not any("grass" in table for table in tables)
