"""Settings that do nothing in a run are said, by plan, run and report, and none is said that does something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from harness.catalogue.labels import load_labels
from harness.catalogue.models import BaseModelSpec
from harness.commands import plan
from harness.commands.requests import SelectionRequest
from harness.planning.questions import PlanAnswer
from harness.record_training import MemoryBreakdown, Prediction
from harness.remarks import KINDS, remarks_of
from harness.settings import TrainSettings
from harness.silent_settings import SILENT, Asked, lost_share, said_of
from harness.tensors.decoder import find_decoder
from tests.contract.conftest import FakeContext, decoder_of, settings_of, tiny_model
from tests.proofs import record_of, task_of
from tests.records import TRAIN
from tests.unit.test_optimizers import optimizer_of


def asked(config: dict[str, Any], num_steps: int | None = 100, **train: Any) -> Asked:
    values = {**TRAIN.model_dump(), "dtype": "bf16", "num_steps": num_steps or 1, "learning_rate": 1e-4, **train}
    return Asked(config, TrainSettings(**values), num_steps)


ADAMW = {"moment_dtype": "bf16", "betas": [0.9, 0.999], "weight_decay": 0.01}
LISA = {"active_layers": 2, "interval_steps": 50, "state_policy": "keep"}
SAID: list[tuple[str, Asked, str]] = [
    ("second moments", asked({**ADAMW, "weight_decay": 0}), "bf16 moments at beta2 = 0.999 never fall, as 0.999 v is"),
    (
        "weight decay",
        asked({**ADAMW, "moment_dtype": "fp32"}),
        "weight_decay = 0.01 does nothing to bf16 weights at learning_rate = 0.0001: less than 19.5 is rounded away",
    ),
    ("one draw", asked(LISA, 50), "interval_steps = 50 outlasts the run's 50 steps: blocks are drawn once"),
    ("one draw", asked({**LISA, "first_period_steps": 60}, 55), "first_period_steps = 60 outlasts the run's 55 steps"),
    (
        "one draw",
        asked({"active_share": 0.25, "interval_steps": 200}),
        "interval_steps = 200 outlasts the run's 100 steps",
    ),
    ("no look at the importance", asked({"score_interval": 10}, 10), "score_interval = 10 outlasts the run's 10 steps"),
    (
        "no stage",
        asked({"stage_steps": 100}),
        "stage_steps = 100 outlasts the run's 100 steps: probabilities stay those",
    ),
    (
        "a score that is not drawn by",
        asked({"probability": "alpha_reverse", "tau": 13.0, "alpha_estimator": "hill"}),
        "tau = 13.0 does nothing under probability = 'alpha_reverse'",
    ),
    (
        "a score that is not drawn by",
        asked({"probability": "uniform", "alpha_estimator": "hill", "alpha_mapping": "softmax"}),
        "alpha_estimator = hill and alpha_mapping = softmax do nothing under probability = 'uniform'",
    ),
    ("one projector", asked({"update_gap": 200}), "update_gap = 200 outlasts the run's 100 steps: projectors stay"),
    ("warm-up", asked({}, warmup_steps=5, lr_scheduler="constant"), "has no warm-up"),
    ("warm-up", asked({}, warmup_steps=200, lr_scheduler="linear"), "the learning rate is never more than 4.95e-05"),
    ("warm-up", asked({}, 1, warmup_steps=1, lr_scheduler="cosine"), "0 throughout, so that nothing is trained"),
    ("held-out readings", asked({}, validation_rows=4, validation_every_steps=100), "read before and after alone"),
    (
        "full rank",
        Asked({"rank": 64}, TRAIN, 10, ("k", "v")),
        "rank = 64 is no less than the smaller side of 2 matrices, k among them: of these nothing is reduced",
    ),
    ("full rank", Asked({"rank": 64}, TRAIN, 10, ("k",)), "the smaller side of k: of these"),
]


@pytest.mark.parametrize(("kind", "run", "words"), SAID)
def test_what_does_nothing_is_said(kind: str, run: Asked, words: str) -> None:
    said = said_of(run)
    assert list(said) == [kind]
    assert words in said[kind]


@pytest.mark.parametrize(
    "run",
    [
        asked({**ADAMW, "moment_rounding": "stochastic", "weight_decay": 0.0}),
        asked({**ADAMW, "betas": [0.9, 0.99], "weight_decay": 20.0}),
        asked({**ADAMW, "moment_dtype": "fp32", "master_weights": True}),
        asked({**ADAMW, "moment_dtype": "fp32", "stochastic_rounding": True}),
        asked({**ADAMW, "moment_dtype": "fp32", "adapter_dtype": "fp32"}),
        asked({**ADAMW, "moment_dtype": "fp32"}, dtype="fp32"),
        asked(LISA, 51),
        asked({**LISA, "active_layers": 0}, 10),
        asked({**LISA, "first_period_steps": 3}, 40),
        asked(LISA, None),
        asked({"update_gap": 100}, 101),
        asked({"update_gap": 200, "state_policy": "drop"}),
        asked({"update_gap": 200, "refresh_on_activation": True}),
        asked({"update_gap": None, "rank": None}),
        asked({"stage_steps": 99}),
        asked({"stage_steps": "none"}),
        asked({"stage_steps": 100}, None),
        asked({"probability": "outlier_reverse", "tau": 13.0, "alpha_estimator": None}),
        asked({"probability": "alpha", "alpha_estimator": "hill", "alpha_mapping": "softmax"}),
        asked({}, warmup_steps=99, lr_scheduler="linear"),
        asked({}, validation_rows=4, validation_every_steps=99),
        asked({"betas": "of a plug-in", "moment_dtype": 8, "weight_decay": "x", "interval_steps": "x"}),
    ],
)
def test_what_does_something_is_not_said(run: Asked) -> None:
    assert said_of(run) == {}


def test_the_law_of_lost_shares_is_torchs_arithmetic() -> None:
    """Of every bf16 number of two binades: scaled by 1 - d it stays, and by a little more some do not."""
    numbers = (torch.arange(128, dtype=torch.float32) / 128 + 1.0).to(torch.bfloat16)
    numbers = torch.cat([numbers, numbers * 2, numbers * 2**-20])
    kept = numbers.clone().mul_(1.0 - lost_share("bf16"))
    assert torch.equal(kept, numbers)
    assert not torch.equal(numbers.clone().mul_(1.0 - 1.01 * lost_share("bf16")), numbers)
    assert torch.equal(numbers.clone().mul_(0.999), numbers)


@pytest.mark.parametrize("rule", ["torch", "transformers"])
@pytest.mark.parametrize(("factor", "moves"), [(0.99, False), (1.5, True)])
def test_weight_decay_below_the_limit_moves_no_weight(rule: str, factor: float, moves: bool) -> None:
    rate = 1e-3
    p = torch.nn.Parameter(torch.linspace(1.0, 1.99, 100).to(torch.bfloat16))
    before = p.detach().clone()
    settings = {"weight_decay": factor * lost_share("bf16") / rate, "adamw_rule": rule}
    optimizer = optimizer_of({"w": p}, lr=rate, moment_dtype="fp32", **settings)
    for _ in range(20):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    assert torch.equal(p.detach(), before) is not moves


def test_it_is_said_of_the_published_labels_that_it_touches_and_of_no_other() -> None:
    touched = set()
    for label, entry in load_labels().items():
        if said_of(asked(entry.values(), 10**6)):
            touched.add(label)
    bf16 = {label for label, entry in load_labels().items() if entry.values().get("moment_dtype") == "bf16"}
    assert touched == bf16 and {"full", "galore", "lisa", "owlore"} <= touched and "lora" not in touched


@pytest.mark.parametrize(
    ("label", "changes", "which"),
    [
        ("galore", {"rank": 16}, "k_proj.weight"),
        ("owlore", {"rank": 32}, "q_proj.weight"),
        ("lora", {"rank": 16, "target_modules": ["q_proj", "k_proj"]}, "self_attn.k_proj"),
        ("galore", {"rank": 15}, None),
        ("lora", {"rank": 15}, None),
    ],
)
def test_a_record_says_which_matrices_the_rank_does_not_reduce(
    label: str, changes: Any, which: str | None, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of(task_of(label, tiny_llama, tmp_path, **changes), monkeypatch)
    found = {remark.kind: remark.sentence for remark in remarks_of(record)}
    assert ("full rank" in found) == (which is not None)
    assert (
        which is None or f"model.layers.0.self_attn.{which.removeprefix('self_attn.')} among them" in found["full rank"]
    )


def test_experts_in_one_tensor_are_told_of_a_projection_that_leaves_them_out() -> None:
    shape: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_local_experts": 2}
    model = MixtralForCausalLM(
        MixtralConfig(**shape, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    )
    experts = [name for name, p in model.named_parameters() if p.dim() == 3]
    spec = BaseModelSpec(name="mixtral", architecture="MixtralForCausalLM", hub_id="someone/mixtral")
    method, values = settings_of("galore")
    context = FakeContext(1, 2, TRAIN, find_decoder(model, spec))
    galore = method(method.Config.model_validate(values))
    declared = galore.declare(galore.prepare(model, context), context)
    assert declared is not None and set(experts) <= set(declared.unprojected)
    said = said_of(Asked({}, TRAIN, 10, (), declared.unprojected))
    assert said["not projected"].startswith(f"{len(declared.unprojected)} tensors of the blocks are no linear layers")
    llama = tiny_model("llama")
    tiny = galore.declare(llama, FakeContext(1, 2, TRAIN, decoder_of(llama)))
    assert tiny is not None and tiny.unprojected == ()


def test_every_kind_is_a_remark() -> None:
    assert set(SILENT) <= set(KINDS)


def test_plan_says_it_of_each_label(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    parts = {"weights_bytes": 1, "gradients_bytes": 1, "optimizer_state_bytes": 1}
    told = Prediction(
        device="cuda", horizon="run", **parts, peak_bytes=4, peak_phase="forward", peak_step=0,
        at_peak=MemoryBreakdown(**parts, activations_bytes=1, other_bytes=0), trainable_params=1, flops_per_step=1,
        recomputed_flops_per_step=0, predict_seconds=0.1, torch="2", full_rank=("a", "b"),
    )  # fmt: skip
    monkeypatch.setattr(plan, "ask", lambda tasks, *_: [PlanAnswer(prediction=told) for _ in tasks])
    chosen = SelectionRequest(suite="configurations", labels=("full", "galore", "lora"), max_steps=5)
    assert plan.plan(chosen) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "full, galore: bf16 moments at beta2 = 0.999 never fall" in text
    assert "galore: update_gap = 200 outlasts the run's 5 steps" in text
    assert "lora: rank = 32 is no less than the smaller side of 2 matrices, a among them" in text
    assert plan.plan(chosen, in_json=True) == 0
    lines = json.loads(capsys.readouterr().out)
    kinds = {line["label"]: [remark["kind"] for remark in line["remarks"]] for line in lines}
    assert kinds["lora"] == ["full rank"] and kinds["galore"] == ["second moments", "one projector", "full rank"]
