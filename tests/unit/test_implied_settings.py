"""Settings of which one follows from another: it need not be said, may be said, and must not be contradicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.catalogue.models import BaseModelSpec
from harness.errors import HarnessError
from harness.expansion import expand, load_suite
from harness.settings import with_implied
from harness.spec import RunSpec
from tests.unit.test_suite import TEXT

MODELS = {"a": BaseModelSpec(name="a", architecture="LlamaForCausalLM", hub_id="someone/a")}
CALIBRATION = '\n[calibration]\ndata = "rows"\nnum_samples = 2\nsequence_length = 8\n'


def run_of(tmp_path: Path, label: str, **overrides: Any) -> RunSpec:
    file = tmp_path / "tiny.toml"
    file.write_text(TEXT + CALIBRATION)
    suite = load_suite(str(file))
    return expand(suite, models=MODELS, sources={}, labels=[label], seeds=[1], overrides=overrides)[0]


DROP = {"state_policy": "drop", "returning_step_counter": "reset", "reset_each_period": False}
PAIRS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("lisa", {"state_policy": "drop"}, DROP),
    ("lisa", {"state_policy": "drop", "returning_step_counter": "reset"}, DROP),
    ("lisa", {"reset_each_period": True}, DROP | {"reset_each_period": True}),
    ("lisa-paper", {"state_policy": "keep"}, {"state_policy": "keep", "reset_each_period": False}),
    ("lisa-paper", {"state_policy": "offload"}, {"state_policy": "offload", "reset_each_period": False}),
    ("owlore", {"projected": False}, {"rank": None, "update_gap": None, "refresh_on_activation": None}),
    ("full", {"two_pass_clipping": True, "max_grad_norm": 1.0}, {"update_in_backward": True}),
    ("lisa", {"interval_steps": 20, "first_period_steps": 20}, {"first_period_steps": None}),
]


@pytest.mark.parametrize(("label", "given", "wanted"), PAIRS)
def test_what_follows_need_not_be_said(
    label: str, given: dict[str, Any], wanted: dict[str, Any], tmp_path: Path
) -> None:
    config = run_of(tmp_path, label, **given).config
    assert {key: config[key] for key in wanted} == wanted


@pytest.mark.parametrize("given", [{"checkpoint_granularity": "nested"}, {"offload_checkpoints": True}])
def test_what_follows_of_training_need_not_be_said(given: dict[str, Any], tmp_path: Path) -> None:
    train = run_of(tmp_path, "full", **given).train
    assert train is not None and train.gradient_checkpointing
    assert run_of(tmp_path, "full", **given, gradient_checkpointing=True).train == train


@pytest.mark.parametrize(
    ("label", "given", "sentence"),
    [
        ("lisa", {"state_policy": "drop", "returning_step_counter": "keep"}, "state_policy = 'drop' resets the step"),
        ("lisa", {"state_policy": "keep", "reset_each_period": True}, "set state_policy = 'drop', not 'keep'"),
        ("owlore", {"projected": False, "rank": 64}, "projected = false takes no rank"),
        (
            "full",
            {"two_pass_clipping": True, "update_in_backward": False, "max_grad_norm": 1.0},
            "two_pass_clipping = t",
        ),
        ("full", {"offload_checkpoints": True, "gradient_checkpointing": False}, "needs gradient_checkpointing = true"),
    ],
)
def test_what_contradicts_is_refused_in_a_sentence(
    label: str, given: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(HarnessError, match=sentence):
        run_of(tmp_path, label, **given)


def test_both_spellings_are_one_run(tmp_path: Path) -> None:
    plain = run_of(tmp_path, "lisa", state_policy="drop")
    said = run_of(tmp_path, "lisa", state_policy="drop", returning_step_counter="reset")
    assert plain.config == said.config


def test_a_number_that_equals_true_implies_nothing() -> None:
    implied = {"flag": ((True, {"other": 1}),)}
    assert with_implied({"flag": 1}, implied) == {"flag": 1}
    assert with_implied({"flag": True}, implied) == {"flag": True, "other": 1}
    assert with_implied({"flag": True, "other": 2}, implied) == {"flag": True, "other": 2}


@pytest.mark.parametrize("length", [1, 2])
def test_a_length_that_leaves_nothing_to_predict_is_no_divergence(length: int, tmp_path: Path) -> None:
    if length == 1:
        with pytest.raises(HarnessError, match="sequence_length = 1 leaves no token to predict from another"):
            run_of(tmp_path, "full", sequence_length=length)
    else:
        assert run_of(tmp_path, "full", sequence_length=length).train is not None
