"""Every named configuration, run on a tiny model, has a proof that holds, in every check that concerns it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.engine import runner
from harness.method import METHODS, Method
from harness.proof import Judgement, judge_record
from harness.record import Record
from tests.proofs import record_of, task_of

COMMON = {"frozen parts", "trained parts", "trainable counts", "optimizer state"}
HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"dtype": "bf16", "gradient_accumulation_steps": 2},
    "clipped": {"update_in_backward": False, "max_grad_norm": 1.0, "warmup_steps": 3, "num_steps": 7},
    "in_backward": {"update_in_backward": True, "gradient_accumulation_steps": 2, "lr_scheduler": "cosine"},
}


def whole(record: Record) -> Judgement:
    """Return the judgement of a record that must be ok, in every check where its method declares anything."""
    assert record.status == "ok", record.log_tail or record.reason
    judgement = judge_record(record)
    assert judgement is not None
    assert judgement.is_whole or not declares(record), judgement.sentence()
    return judgement


def declares(record: Record) -> bool:
    """Return whether the method of a record says beforehand what it will train and keep."""
    return METHODS.get(record.spec.method).declare is not Method.declare


def checks_of(record: Record) -> None:
    """Assert that a proof holds, and that no check is left out that the method and its settings call for."""
    names = {check.name for check in whole(record).checks}
    wanted, config = set(COMMON), record.spec.config
    if METHODS.get(record.spec.method).samples_blocks:
        wanted.add("draws")
    if config.get("update_gap") is not None:
        wanted.add("projectors")
    if "target_modules" in config:
        wanted |= {"adapters", "base weights"}
    assert names == wanted


@pytest.mark.parametrize("how", HOW)
def test_every_named_configuration_proves_itself(
    trained: str, how: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of(task_of(trained, tiny_llama, tmp_path, **HOW[how]), monkeypatch)
    checks_of(record)


def test_a_resumed_run_proves_itself(
    trained: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(trained, tiny_llama, tmp_path, checkpoint_folder=tmp_path / "checkpoints", checkpoint_every=3)

    def stop(what: str, done: int, total: int | None) -> None:
        if what.startswith("training, loss") and done == 5:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        execute = runner.execute
        patch.setattr(runner, "execute", lambda task, progress: execute(task, stop))
        assert record_of(task, patch).status == "interrupted"
    record = record_of(task, monkeypatch)
    assert record.train is not None and record.train.resumed_at_steps == (3,)
    checks_of(record)


TWO_PASSES = ("owlore", "lora-fa")
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *(("lisa", {"state_policy": policy, "returning_step_counter": "reset"}) for policy in ("drop", "keep", "offload")),
    ("lisa", {"sampling": "bernoulli", "state_policy": "drop", "returning_step_counter": "reset", "interval_steps": 1}),
    ("lisa", {"sampling": "tour", "interval_steps": 1}),
    ("lisa", {"train_embedding": False, "train_head": False, "train_final_norm": False}),
    ("lisa", {"active_layers": 0}),
    *(
        ("owlore", {"state_policy": policy, "returning_step_counter": "reset", "update_gap": gap, "interval_steps": 3})
        for policy in ("drop", "keep", "offload")
        for gap in (1, 2, 5)
    ),
    ("owlore", {"update_gap_counter": "global", "projection_side": "smaller", "interval_steps": 1}),
    ("owlore", {"refresh_on_activation": True, "projector": "svd", "update_gap": 4}),
    ("owlore", {"sampling": "tour", "update_gap": 2, "interval_steps": 1, "project_vocabulary": True}),
    ("galore", {"project_vocabulary": True, "update_gap_counter": "global", "rank": 100, "moment_dtype": "fp32"}),
    ("galore", {"stochastic_rounding": True, "dtype": "bf16", "projector_dtype": "fp32"}),
    ("owlore", {"moment_rounding": "stochastic", "dtype": "bf16"}),
    ("full", {"master_weights": True, "moment_dtype": "fp32", "dtype": "bf16", "update_slice_elements": 100}),
    ("lora", {"adapter_dtype": "bf16", "master_weights": True, "dtype": "bf16"}),
    ("lora", {"target_modules": ["q_proj", "lm_head"]}),
    ("lora", {"target_modules": ["lm_head"]}),
    ("lora", {"learning_rate": 1e-44}),
    ("galore", {"dtype": "bf16", "learning_rate": 1e-4, "scale": 1e-6}),
    *((name, {"eps": 1e6}) for name in ("full", "owlore")),
    *((name, {"max_grad_norm": 1e-12, "update_in_backward": False}) for name in ("full", "galore", "lisa")),
    ("dora", {"target_modules": ["q_proj", "embed_tokens"]}),
    ("lora", {"use_rslora": True, "weight_decay": 0.1, "rank": 40}),
    ("lora", {"gradient_checkpointing": True, "dtype": "bf16"}),
    ("ist", {"state_policy": "drop", "use_dora": True, "interval_steps": 1, "target_modules": ["q_proj", "lm_head"]}),
    ("ist", {"lora_fa": True, "interval_steps": 3, "warmup_steps": 4}),
    *((name, {"update_in_backward": True, "two_pass_clipping": True, "max_grad_norm": 1.0}) for name in TWO_PASSES),
]


@pytest.mark.parametrize(("name", "changes"), OPTIONS)
def test_every_option_of_state_draw_projection_and_adapter_proves_itself(
    name: str, changes: dict[str, Any], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole(record_of(task_of(name, tiny_llama, tmp_path, num_steps=12, **changes), monkeypatch))


@pytest.mark.parametrize("law", ["tour", "descending", "reshuffle"])
def test_the_proof_holds_under_laws_that_take_turns(
    law: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of("lisa", tiny_llama, tmp_path, sampling=law, first_period_steps=3, num_steps=12)
    whole(record_of(task, monkeypatch))


def test_the_proof_holds_where_every_draw_drops_all_state(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block follows itself here, so that only the reset makes a projector due before its gap."""
    changes = {"reset_each_period": True, "state_policy": "drop", "returning_step_counter": "reset"}
    task = task_of(
        "owlore", tiny_llama, tmp_path, active_layers=4, update_gap=5, project_vocabulary=True, num_steps=12, **changes
    )
    whole(record_of(task, monkeypatch))


@pytest.mark.parametrize(("name", "changes"), [("full", {}), ("lisa", {}), ("lora", {"target_modules": ["lm_head"]})])
def test_a_tied_head_counts_as_the_embedding(
    name: str, changes: dict[str, Any], tiny_llama_tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judgement = judge_record(record_of(task_of(name, tiny_llama_tied, tmp_path, **changes), monkeypatch))
    assert judgement is not None and not judgement.failed, judgement


def test_lora_fa_refuses_an_embedding(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"target_modules": ["q_proj", "embed_tokens"]}
    record = record_of(task_of("lora-fa", tiny_llama, tmp_path, **changes), monkeypatch)
    assert record.status == "refused", record.reason
    assert record.reason is not None and "model.embed_tokens, an embedding, has none" in record.reason


def test_a_target_that_no_layer_has_is_refused_beside_others_too(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of(task_of("lora", tiny_llama, tmp_path, target_modules=["q_proj", "kv_proj"]), monkeypatch)
    assert record.status == "refused" and record.reason is not None
    assert record.reason.startswith(
        "the model has no layer called kv_proj for target_modules (did you mean 'v_proj'?); "
    )


def test_what_trains_nothing_has_nothing_to_prove(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of(task_of("base", tiny_llama, tmp_path), monkeypatch)
    assert (record.status, judge_record(record)) == ("ok", None)
