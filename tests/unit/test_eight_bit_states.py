"""8-bit moments in whole runs: states that are drawn, dropped, moved to the host and back, saved and declared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.engine.checkpoint import Checkpoints
from harness.proof import judge_record
from harness.tensors.decoder import checksums
from tests.conftest import SHAPE, byte_tokenizer
from tests.proofs import record_of, task_of
from tests.unit.test_training import build, train


@pytest.fixture(scope="module")
def wide_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose linear layers hold 4,096 numbers and more, in the subspace of rank 64 too."""
    shape = {**SHAPE, "hidden_size": 64, "num_key_value_heads": 4}
    folder = tmp_path_factory.mktemp("models") / "wide-llama"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**shape))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


IN_8_BITS = {"moment_dtype": "int8", "rank": 64}
SAMPLED = [
    ("lisa", {"state_policy": "offload", "returning_step_counter": "keep", "interval_steps": 1, "active_layers": 1}),
    ("owlore", {"state_policy": "drop", "returning_step_counter": "reset", "interval_steps": 2, "active_layers": 1}),
]


@pytest.mark.parametrize(("label", "settings"), [*SAMPLED, ("lora", {})])
def test_states_that_are_drawn_offloaded_and_dropped_are_those_declared(
    label: str, settings: dict[str, Any], wide_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of(task_of(label, wide_llama, tmp_path, num_steps=9, **settings, **IN_8_BITS), monkeypatch)
    assert record.status == "ok", record.reason
    judgement = judge_record(record)
    assert judgement is not None and judgement.is_whole, judgement.sentence()
    assert record.train is not None and record.train.curve.optimizer_state_bytes[-1] > 4096


def test_states_on_the_host_come_back_as_they_were(wide_llama: Path, tokenizer: Any) -> None:
    ended = {}
    for policy in ("keep", "offload"):
        settings = {**SAMPLED[0][1], "state_policy": policy, **IN_8_BITS}
        _, decoder, loop = train("lisa", wide_llama, tokenizer, num_steps=6, settings=settings)
        ended[policy] = checksums(decoder), loop.optimizer.state_bytes()
        held = {tensor.dtype for _, tensors in loop.optimizer._state_tensors() for tensor in tensors}
        assert held == {torch.uint8, torch.float32}
    assert ended["keep"][0] == ended["offload"][0]
    assert ended["offload"][1]["host"] > 0 and sum(ended["offload"][1].values()) == ended["keep"][1]["device"]


@pytest.mark.parametrize(("label", "settings"), SAMPLED)
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    label: str, settings: dict[str, Any], wide_llama: Path, tokenizer: Any, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"num_steps": 6, "settings": {**settings, **IN_8_BITS, "update_in_backward": True}}
    options["max_grad_norm"] = None
    _, whole, _ = train(label, wide_llama, tokenizer, **options)
    first, _, data = build(label, wide_llama, tokenizer, **options)

    def stop(done: int, loss: float) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(data.step_batches(), stop, Checkpoints(tmp_path, first).save, 3)
    second, decoder, data = build(label, wide_llama, tokenizer, **options)
    assert Checkpoints(tmp_path, second).restore() == 3
    second.run(data.step_batches(second.step), lambda done, loss: None)
    assert checksums(decoder) == checksums(whole)
