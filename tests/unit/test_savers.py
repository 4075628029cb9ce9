"""Every exact way to need less memory, with every named configuration: the same losses, the same weights."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.catalogue.labels import load_labels
from harness.engine.stepping import Diverged
from harness.errors import Refused
from harness.method import METHODS
from harness.methods._optimizers import DTYPES, AdamW, Group
from harness.methods._settings import AdamWSettings
from harness.tensors.loading import load_model
from harness.tensors.storage_tracker import StorageTracker
from tests.records import TRAIN
from tests.unit.test_training import LABELS, build, train

CHECKPOINTED = {"gradient_checkpointing": True}
NESTED = CHECKPOINTED | {"checkpoint_granularity": "nested"}
OFFLOADED = CHECKPOINTED | {"offload_checkpoints": True}
TWO_PASSES = {"max_grad_norm": 0.05, "settings": {"update_in_backward": True, "two_pass_clipping": True}}
ONE_PASS = {"max_grad_norm": 0.05, "settings": {"update_in_backward": False}}
SLICED_UPDATES = {"settings": {"update_slice_elements": 100}}
BIT_IDENTICAL = [
    pytest.param({}, NESTED, id="nested"),
    pytest.param({}, OFFLOADED, id="offloaded"),
    pytest.param({}, NESTED | OFFLOADED, id="nested-offloaded"),
    pytest.param({}, SLICED_UPDATES, id="sliced-updates"),
    pytest.param(ONE_PASS, TWO_PASSES, id="two-passes"),
    pytest.param(
        ONE_PASS | {"gradient_accumulation_steps": 2},
        TWO_PASSES | {"gradient_accumulation_steps": 2},
        id="two-passes-accumulated",
    ),
]
SOME = ("full", "lora", "owlore", "galore-layerwise", "lisa-paper")

Ended = tuple[tuple[float, ...], tuple[float | None, ...], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def ended(tiny_llama: Path, tokenizer: Any) -> Any:
    """Return what gives losses, norms and weights after three steps; plain runs are kept."""

    @cache
    def run(label: str, changes: str) -> Ended:
        options = {"num_steps": 3, "max_grad_norm": None, **eval(changes)}
        result, _, loop = train(label, tiny_llama, tokenizer, **options)
        weights = {name: p.detach() for name, p in loop.model.named_parameters()}
        return result.curve.loss, result.curve.grad_norm, weights

    return lambda label, **changes: run(label, repr(changes))


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize(("plain", "saver"), BIT_IDENTICAL)
def test_not_a_bit_changes(label: str, plain: dict[str, Any], saver: dict[str, Any], ended: Any) -> None:
    (loss, norms, weights), (saved_loss, saved_norms, saved) = ended(label, **plain), ended(label, **saver)
    assert saved_loss == loss
    assert saved_norms == norms
    assert "max_grad_norm" not in plain or all(norm is not None and norm > 0.05 for norm in norms)
    assert all(torch.equal(saved[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("label", SOME)
@pytest.mark.parametrize(("plain", "saver"), BIT_IDENTICAL)
def test_not_a_bit_changes_in_bf16(label: str, plain: dict[str, Any], saver: dict[str, Any], ended: Any) -> None:
    test_not_a_bit_changes(label, {"dtype": "bf16", **plain}, {"dtype": "bf16", **saver}, ended)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("columns", [64, 100_000])
def test_the_sliced_loss_changes_rounding_alone(label: str, columns: int, ended: Any) -> None:
    # A large eps: where a gradient is zero within rounding, Adam would divide noise by noise.
    changes: dict[str, Any] = {"learning_rate": 1e-3, "settings": {"eps": 1e-3, "moment_dtype": "fp32"}}
    loss, _, weights = ended(label, **changes)
    saved_loss, _, saved = ended(label, **changes, loss_chunk_columns=columns)
    assert saved_loss == pytest.approx(loss, rel=1e-6)
    # A projector follows the leading singular vectors, which rounding turns where singular values lie close together.
    projected = "rank" in (values := load_labels()[label].values()) and "update_gap" in values
    for name, weight in weights.items():
        torch.testing.assert_close(saved[name], weight, rtol=1e-4, atol=3e-4 if projected else 1e-6, msg=name)


@pytest.mark.parametrize("label", SOME)
def test_the_sliced_loss_in_bf16_and_with_all_the_others(label: str, ended: Any) -> None:
    changes: dict[str, Any] = {"learning_rate": 1e-3, "dtype": "bf16"}
    loss, _, _ = ended(label, **changes)
    every = {**TWO_PASSES["settings"], **SLICED_UPDATES["settings"]}  # type: ignore[dict-item]
    savers: dict[str, Any] = {"loss_chunk_columns": 64, **NESTED, **OFFLOADED, "max_grad_norm": 1e6, "settings": every}
    assert ended(label, **changes, loss_chunk_columns=64)[0] == pytest.approx(loss, rel=2e-3)
    assert ended(label, **changes, **savers)[0] == pytest.approx(loss, rel=2e-3)


def test_master_weights_are_updated_in_slices_bit_by_bit(ended: Any) -> None:
    own = {"master_weights": True, "moment_dtype": "fp32"}
    plain = ended("full", dtype="bf16", settings=own)[2]
    sliced = ended("full", dtype="bf16", settings=own | SLICED_UPDATES["settings"])[2]
    assert all(torch.equal(sliced[name], weight) for name, weight in plain.items())


@pytest.mark.parametrize("rule", ["torch", "transformers"])
@pytest.mark.parametrize(("moments", "weights"), [("fp32", "fp32"), ("bf16", "bf16"), ("fp32", "bf16")])
def test_slices_bound_the_temporaries(rule: str, moments: str, weights: str) -> None:
    rows, columns, elements, dtype = 97, 40, 400, DTYPES[weights]
    results, largest = [], []
    for slicing in (None, elements):
        values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
        p = torch.nn.Parameter(values.to(dtype))
        values: dict[str, Any] = {
            "adamw_rule": rule, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "moment_dtype": moments,
            "master_weights": False, "stochastic_rounding": False, "update_slice_elements": slicing,
        }  # fmt: skip
        optimizer = AdamW(
            [Group([("w", p)])], AdamWSettings(**values), learning_rate=0.01, streams=lambda name: torch.Generator()
        )
        for step in range(2):
            p.grad = torch.randn(rows, columns, generator=torch.Generator().manual_seed(step)).to(dtype)
            tracker = StorageTracker()
            tracker.adopt([p, p.grad, *optimizer.device_tensors()], "weights")
            with tracker:
                optimizer.step()
        largest.append(max(event.num_bytes for event in tracker.take().events[2 + 2 :]))  # after what was adopted
        results.append(p.detach())
    assert torch.equal(*results)
    size = 4 if moments == "fp32" else 2
    assert largest == [rows * columns * size, 8 * columns * size]  # 10 rows, cut to a multiple of 64 elements


def test_two_passes_hold_one_gradient_at_a_time_and_measure_before_they_update(
    tiny_llama: Path, tokenizer: Any, monkeypatch: Any
) -> None:
    loop, _, data = build("full", tiny_llama, tokenizer, **TWO_PASSES)
    events: list[str] = []
    stepping = loop.stepping
    passes, update = stepping._backward, stepping._update
    monkeypatch.setattr(stepping, "_backward", lambda *args: (events.append("pass"), passes(*args))[1])

    def watched(p: torch.Tensor) -> None:
        assert sum(q.grad is not None for q in loop.model.parameters()) == 1
        events.append("update")
        update(p)

    monkeypatch.setattr(stepping, "_update", watched)
    loop.train_step(next(data.step_batches()))
    assert events == ["pass", "pass"] + ["update"] * len(list(loop.model.parameters()))


@pytest.mark.parametrize("label", ["full", "lisa", "lora"])
def test_a_loss_that_is_not_finite_moves_no_weight_in_two_passes(label: str, tiny_llama: Path, tokenizer: Any) -> None:
    loop, decoder, data = build(label, tiny_llama, tokenizer, **TWO_PASSES)
    with torch.no_grad():
        decoder.head.weight[3, 3] = float("inf")
    before = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    with pytest.raises(Diverged, match="at step 0"):
        loop.run(data.step_batches(), lambda done, loss: None)
    assert all(torch.equal(p, before[name]) for name, p in loop.model.named_parameters())
    assert not loop.optimizer.state


def test_two_passes_keep_one_gradient_where_clipping_keeps_all(tiny_llama: Path, tokenizer: Any) -> None:
    held = {}
    for name, changes in (("one", ONE_PASS), ("two", TWO_PASSES)):
        _, _, loop = train("full", tiny_llama, tokenizer, num_steps=2, batch_size=1, sequence_length=8, **changes)
        held[name] = loop.memory.tracked_peak.at_peak.gradients_bytes
    total = sum(4 * p.numel() for p in load_model(tiny_llama, "fp32", torch.device("cpu")).parameters())
    assert held["one"] == total
    assert held["two"] < total / 2


def test_two_passes_without_their_settings_are_refused() -> None:
    full = METHODS.get("full")
    values = load_labels()["full"].values()
    with pytest.raises(ValueError, match="two_pass_clipping = true is for update_in_backward = true"):
        full.Config.model_validate(values | {"two_pass_clipping": True})
    settings = TRAIN
    on = full.Config.model_validate(values | {"two_pass_clipping": True, "update_in_backward": True})
    with pytest.raises(Refused, match="no norm to clip to"):
        full.check(on, settings)
    clipped = settings.model_copy(update={"max_grad_norm": 1.0})
    full.check(on, clipped)
    off = full.Config.model_validate(values | {"update_in_backward": True})
    with pytest.raises(Refused, match="set two_pass_clipping = true"):
        full.check(off, clipped)


def test_slices_and_stochastic_rounding_exclude_each_other() -> None:
    values = load_labels()["full"].values()
    with pytest.raises(ValueError, match="slices would draw other numbers"):
        METHODS.get("full").Config.model_validate(values | {"stochastic_rounding": True, "update_slice_elements": 9})


@pytest.mark.parametrize("label", ["galore", "owlore"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_vocabulary_is_projected_when_asked(
    label: str, tied: bool, tiny_llama: Path, tiny_llama_tied: Path, tokenizer: Any
) -> None:
    folder = tiny_llama_tied if tied else tiny_llama
    names = {}
    for asked in (False, True):
        result, _, loop = train(label, folder, tokenizer, settings={"project_vocabulary": asked})
        names[asked] = set(loop.method.proof()["projected"])
        assert all(map(math.isfinite, result.curve.loss))
    vocabulary = {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert names[True] - names[False] == vocabulary
    assert not names[False] & vocabulary


def test_a_frozen_vocabulary_is_not_projected(tiny_llama: Path, tokenizer: Any) -> None:
    frozen = {"project_vocabulary": True, "train_embedding": False, "train_head": False}
    _, _, loop = train("owlore", tiny_llama, tokenizer, settings=frozen)
    assert not {name for name in loop.method.proof()["projected"] if "layers" not in name}


def test_full_rank_updates_project_no_vocabulary() -> None:
    entry = load_labels()["ows-fullrank"]
    config = METHODS.get(entry.method).Config
    values = {key: value for key, value in entry.values().items() if key in config.model_fields}
    with pytest.raises(ValueError, match="projected = false takes no project_vocabulary"):
        config.model_validate(values | {"project_vocabulary": True})
