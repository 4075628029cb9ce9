"""Planted faults: each run ends, is measured, and is told to be unproven by the check that is there for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.declaration import DeclaredPart
from harness.engine.training import TrainingLoop
from harness.methods import _optimizers
from harness.methods._layer_sampled import LayerSampledMethod
from harness.methods._layer_sampling import BlockSampler
from harness.methods._optimizers import AdamW
from harness.methods._projection import LowRankProjection
from harness.methods._state_stream import StateStream
from harness.methods._trained import TrainedMethod
from harness.methods.lora import Lora
from harness.proof import judge_record
from tests.proofs import record_of, task_of

Patch = pytest.MonkeyPatch


def wrapped(patch: Patch, owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Put ``around(original, self, ...)`` in the place of a method."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda self, *given: around(original, self, *given))


def nudge(patch: Patch, owner: Any, pick: Callable[[Any], torch.Tensor | None]) -> None:
    """Let a method change a weight at every step beside what its optimizer does."""

    def build(original: Any, self: Any, model: Any, context: Any) -> Any:
        self.nudged = context.decoder
        return original(self, model, context)

    def begin(original: Any, self: Any, step: int, optimizer: Any) -> None:
        original(self, step, optimizer)
        weight = pick(self)
        if weight is not None:
            with torch.no_grad():
                weight.add_(1e-3)

    wrapped(patch, owner, "build_optimizer", build)
    wrapped(patch, owner, "on_step_begin", begin)


def never_drawn(method: Any) -> torch.Tensor | None:
    """Return a weight of a block that was not drawn, in the run's last step."""
    drawn = {block for _, blocks in method._sampler._draws for block in blocks}
    if method._optimizer.global_step < 3:
        return None
    frozen = next(index for index in range(4) if index not in drawn)
    weight: torch.Tensor = next(method.nudged.blocks[frozen].parameters())
    return weight


@contextmanager
def unmoved(params: list[torch.Tensor]) -> Any:
    before = [p.detach().clone() for p in params]
    yield
    with torch.no_grad():
        for p, old in zip(params, before, strict=True):
            p.copy_(old)


def a_frozen_block_moves(patch: Patch) -> None:
    nudge(patch, LayerSampledMethod, never_drawn)


def a_frozen_embedding_moves(patch: Patch) -> None:
    nudge(patch, LayerSampledMethod, lambda method: method.nudged.embedding.weight)


def base_weights_move(patch: Patch) -> None:
    def pick(method: Any) -> torch.Tensor:
        layer: torch.Tensor = method.nudged.blocks[1].mlp.up_proj.base_layer.weight
        return layer

    nudge(patch, TrainedMethod, pick)
    patch.setattr(Lora, "on_step_begin", TrainedMethod.on_step_begin)


def left_alone(patch: Patch, part: str) -> None:
    def step(original: Any, self: Any, params: Any) -> None:
        params = list(params)
        with unmoved([p for p in params if part in self._names[p]]):
            original(self, params)

    wrapped(patch, AdamW, "step_parameters", step)


def a_trained_block_stays(patch: Patch) -> None:
    left_alone(patch, "layers.2.")


def an_adapter_stays(patch: Patch) -> None:
    left_alone(patch, "layers.3.self_attn.v_proj.lora_B")


def state_is_kept(patch: Patch) -> None:
    patch.setattr(AdamW, "drop_state", lambda self, params: None)


def state_stays_on_the_device(patch: Patch) -> None:
    patch.setattr(AdamW, "offload_state", lambda self, params: None)


def streamed_state_stays_on_the_device(patch: Patch) -> None:
    patch.setattr(StateStream, "end", lambda self, p: None)
    patch.setattr(StateStream, "flush", lambda self: None)


def projectors_are_never_refreshed(patch: Patch) -> None:
    patch.setattr(LowRankProjection, "due", lambda self, state, age: "projector" not in state)


def projectors_are_refreshed_at_every_update(patch: Patch) -> None:
    patch.setattr(LowRankProjection, "due", lambda self, state, age: True)


def a_target_is_left_out(patch: Patch) -> None:
    def prepare(original: Any, self: Any, model: Any, context: Any) -> Any:
        whole = self.config
        self.config = whole.model_copy(update={"target_modules": whole.target_modules[:-1]})
        model = original(self, model, context)
        self.config = whole
        return model

    wrapped(patch, Lora, "prepare", prepare)


def moments_are_fp32(patch: Patch) -> None:
    patch.setattr(_optimizers, "DTYPES", {"bf16": torch.float32, "fp32": torch.float32})


def nothing_is_projected(patch: Patch) -> None:
    def build(original: Any, self: Any, model: Any, context: Any) -> Any:
        optimizer = original(self, model, context)
        optimizer._projections = [None for _ in optimizer.param_groups]
        return optimizer

    wrapped(patch, TrainedMethod, "build_optimizer", build)


def one_matrix_is_not_updated(patch: Patch) -> None:
    def step(original: Any, self: Any, params: Any) -> None:
        late = self.global_step > 2
        original(self, [p for p in params if not (late and "layers.0.mlp.up_proj" in self._names[p])])

    wrapped(patch, AdamW, "step_parameters", step)


def other_draws_are_reported(patch: Patch) -> None:
    def proof(original: Any, self: Any) -> Any:
        said = original(self)
        said["draws"][1]["blocks"] = [(block + 1) % 4 for block in said["draws"][1]["blocks"]]
        return said

    wrapped(patch, BlockSampler, "proof", proof)


def the_order_of_turns_is_wrong(patch: Patch) -> None:
    wrapped(patch, BlockSampler, "_draw", lambda original, self: [(block + 1) % 4 for block in original(self)])


def blocks_are_drawn_once(patch: Patch) -> None:
    def begin(original: Any, self: Any, step: int, optimizer: Any) -> None:
        if step == 0:
            original(self, step, optimizer)

    wrapped(patch, BlockSampler, "on_step_begin", begin)


def the_mean_count_lies(patch: Patch) -> None:
    wrapped(patch, TrainingLoop, "result", lambda original, self: _halved(original(self)))


def _halved(result: Any) -> Any:
    return result.model_copy(update={"trainable_params_mean": result.trainable_params_mean / 2})


def the_head_is_trained_though_frozen(patch: Patch) -> None:
    def prepare(original: Any, self: Any, model: Any, context: Any) -> Any:
        model = original(self, model, context)
        context.decoder.head.requires_grad_(True)
        return model

    wrapped(patch, LayerSampledMethod, "prepare", prepare)


FROZEN = {"train_embedding": False, "train_head": False}
DROPPED = {"state_policy": "drop", "returning_step_counter": "reset"}
FAULTS: list[tuple[Callable[[Patch], None], str, dict[str, Any], set[str], str]] = [
    (
        a_frozen_block_moves,
        "lisa",
        {"num_steps": 4, "active_layers": 1},
        {"frozen parts"},
        "changed without being trained: block",
    ),
    (a_frozen_embedding_moves, "lisa", FROZEN, {"frozen parts"}, "trained: embedding"),
    (a_trained_block_stays, "full", {}, {"trained parts"}, "trained without any change: block 2"),
    (state_is_kept, "lisa", DROPPED, {"optimizer state"}, "bytes on the device"),
    (state_stays_on_the_device, "lisa", {"state_policy": "offload"}, {"optimizer state"}, "bytes on the host"),
    (streamed_state_stays_on_the_device, "grass", {}, {"optimizer state"}, "bytes on the device, declared are 0"),
    (projectors_are_never_refreshed, "galore", {}, {"projectors"}, "had 1 projectors in 8 updates, due were 3 in 8"),
    (projectors_are_never_refreshed, "owlore", {"update_gap": 1}, {"projectors"}, "due were"),
    (projectors_are_refreshed_at_every_update, "galore", {}, {"projectors"}, "had 8 projectors in 8 updates"),
    (one_matrix_is_not_updated, "galore", {}, {"projectors"}, "layers.0.mlp.up_proj.weight had 1 projectors in 3"),
    (
        a_target_is_left_out,
        "lora",
        {},
        {"adapters", "trainable counts", "optimizer state"},
        "model.layers.0.mlp.down_proj has no adapter",
    ),
    (an_adapter_stays, "lora", {}, {"adapters"}, "the adapter of model.layers.3.self_attn.v_proj did not move"),
    (an_adapter_stays, "lora-fa", {}, {"adapters"}, "the adapter of model.layers.3.self_attn.v_proj did not move"),
    (base_weights_move, "lora", {}, {"base weights"}, "the base weights of block 1 changed"),
    (moments_are_fp32, "full", {"dtype": "bf16"}, {"optimizer state"}, "bytes on the device"),
    (nothing_is_projected, "galore", {}, {"optimizer state", "projectors"}, "had None projectors"),
    (other_draws_are_reported, "lisa", {}, {"draws"}, "at step 2 "),
    (the_order_of_turns_is_wrong, "lisa", {"sampling": "tour"}, {"draws"}, "the turn was of [0, 1]"),
    (the_order_of_turns_is_wrong, "lisa", {"sampling": "descending"}, {"draws"}, "the turn was of [2, 3]"),
    (blocks_are_drawn_once, "lisa", {}, {"draws"}, "1 draws are reported, due was one each 2 steps"),
    (the_mean_count_lies, "lisa", {}, {"trainable counts"}, "parameters a step are stated"),
    (the_head_is_trained_though_frozen, "lisa", FROZEN, {"trainable counts"}, "were trainable, declared are"),
]


@pytest.mark.parametrize(
    ("fault", "name", "changes", "checks", "sentence"), FAULTS, ids=[f"{f[0].__name__}-{f[1]}" for f in FAULTS]
)
def test_a_run_with_a_fault_is_unproven_and_says_why(
    fault: Callable[[Patch], None],
    name: str,
    changes: dict[str, Any],
    checks: set[str],
    sentence: str,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(monkeypatch)
    record = record_of(task_of(name, tiny_llama, tmp_path, **changes), monkeypatch)
    assert record.status == "unproven", record.log_tail or record.reason
    judgement = judge_record(record)
    assert judgement is not None
    assert {check.name for check in judgement.failed} == checks
    assert record.reason == judgement.sentence()
    assert record.reason.startswith(f"the proof fails in {len(checks)} of ")
    assert sentence in record.reason
    assert record.train is not None and record.train.num_steps == len(record.train.curve.loss)


def declared(change: Callable[[Any], Any]) -> Callable[[Patch], None]:
    """Let a method declare something else than what it declares."""

    def plant(patch: Patch) -> None:
        wrapped(patch, TrainedMethod, "declare", lambda original, self, *given: change(original(self, *given)))

    return plant


def reported(said: Any) -> Callable[[Patch], None]:
    """Let a method report this as its proof."""
    return lambda patch: patch.setattr(TrainedMethod, "proof", lambda self: said)


NONSENSE: list[tuple[Callable[[Patch], None], str]] = [
    (declared(lambda said: {"blocks": ()}), "method 'full': declare returned dict, not a Declaration or None"),
    (declared(lambda said: said.model_copy(update={"others": 3})), "what method 'full' declares is wrong: others is 3"),
    (declared(lambda said: said.model_copy(update={"blocks": said.blocks[:3]})), "declares 3 blocks of a model with 4"),
    (
        declared(lambda said: said.model_copy(update={"blocks": (DeclaredPart(num_params=2**70),) * 4})),
        "what method 'full' declares is wrong: it holds a number of more than 64 bits",
    ),
    (reported(None), "what method 'full' reports as its proof is wrong: method is None"),
    (reported({"seen": {1}}), "what method 'full' reports as its proof is wrong: method.seen is {1}"),
    (reported({"seen": 2**70}), "what method 'full' reports as its proof is wrong: it holds a number of more than"),
]


@pytest.mark.parametrize(("fault", "sentence"), NONSENSE)
def test_a_method_that_says_what_no_record_can_hold_fails_with_a_sentence(
    fault: Callable[[Patch], None], sentence: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    record = record_of(task_of("full", tiny_llama, tmp_path), monkeypatch)
    assert (record.status, record.log_tail) == ("failed", None)
    assert record.reason is not None and sentence in record.reason
    assert (record.phase("train") is None) == ("declare" in sentence)
