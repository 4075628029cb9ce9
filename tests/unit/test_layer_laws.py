"""Laws under which blocks take turns, probabilities that change, and state that is dropped at every draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.catalogue.labels import load_labels
from harness.errors import Refused
from harness.method import METHODS
from harness.methods._inclusion import inclusion_probabilities
from harness.methods._layer_sampled import LayerSampledConfig
from harness.methods._layer_sampling import BlockSampler
from harness.settings import later_settings
from tests.records import make_spec
from tests.unit.test_layer_sampling import settings
from tests.unit.test_training import build, train

TURNS = {"legacy_draws_seed": None, "interval_steps": 1}


class Context:
    """Gives the stream of draws, and nothing else."""

    def __init__(self, seed: int = 1) -> None:
        self.seed = seed

    def numpy_generator(self, stream: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream.encode()])


class NoState:
    """An optimizer that counts what is asked of it."""

    global_step = 0
    param_groups: tuple[dict[str, Any], ...] = ()

    def drop_state(self, params: Any) -> None: ...

    def restore_state(self, params: Any) -> None: ...


def sampler(num_blocks: int = 4, probabilities: Any = None, seed: int = 1, **changes: Any) -> BlockSampler:
    blocks = [torch.nn.Linear(1, 1) for _ in range(num_blocks)]
    return BlockSampler(blocks, settings(**changes), probabilities, Context(seed))  # type: ignore[arg-type]


def drawn(one: BlockSampler, steps: Any) -> list[list[int]]:
    for step in steps:
        one.on_step_begin(step, NoState())  # type: ignore[arg-type]
    return [draw["blocks"] for draw in one.proof()["draws"]]  # type: ignore[index, union-attr, call-overload, misc]


def test_a_reshuffled_round_takes_every_block_once_and_each_round_has_its_order() -> None:
    one = sampler(sampling="reshuffle", active_layers=2)
    rounds = np.array(drawn(one, range(40))).reshape(20, 4)
    assert (np.sort(rounds, axis=1) == np.arange(4)).all()
    assert len({tuple(order) for order in rounds.tolist()}) > 10
    assert (
        rounds.tolist()
        == np.array(drawn(sampler(sampling="reshuffle", active_layers=2), range(40))).reshape(20, 4).tolist()
    )
    other = drawn(sampler(sampling="reshuffle", active_layers=2, seed=2), range(40))
    assert rounds.tolist() != np.array(other).reshape(20, 4).tolist()


def test_an_interrupted_round_goes_on_where_it_was() -> None:
    changes = {"sampling": "reshuffle", "active_layers": 1}
    whole, part, rest = (sampler(7, **changes) for _ in range(3))
    drawn(part, range(3))
    rest.load_state_dict(json.loads(json.dumps(part.state_dict())))
    assert drawn(rest, range(3, 20)) == drawn(whole, range(20))


def test_descending_is_a_tour_from_the_last_block_on() -> None:
    assert drawn(sampler(sampling="descending", active_layers=1), range(5)) == [[3], [2], [1], [0], [3]]
    assert drawn(sampler(sampling="descending", active_layers=3), range(3)) == [[3, 2, 1], [0, 3, 2], [1, 0, 3]]


@pytest.mark.parametrize("law", ["reshuffle", "descending"])
def test_blocks_that_take_turns_ask_for_no_scores_and_have_equal_chances(law: str) -> None:
    assert inclusion_probabilities(settings(sampling=law), [0.7, 0.1, 0.1, 0.1]) == [0.5] * 4
    assert sampler(sampling=law).proof()["probability"] == "ignored"
    method = METHODS.get("lisa")
    values = {k: v for k, v in load_labels()["lisa"].values().items() if k in method.Config.model_fields}
    config = method.Config.model_validate(values | {"sampling": law, "probability": "outlier", "tau": 13.0})
    assert method(config).block_scores_needed() is None
    with pytest.raises(ValueError, match=f"not sampling = '{law}'"):
        method.Config.model_validate(values | {"sampling": law, "legacy_draws_seed": 1})
    with pytest.raises(AssertionError, match="take turns"):
        sampler(sampling=law).set_probabilities(0, [1.0] * 4)


def test_a_round_that_does_not_come_out_even_is_refused(tiny_llama: Path, tokenizer: Any) -> None:
    with pytest.raises(Refused, match="active_layers = 3 does not divide the model's 4 blocks"):
        build("lisa", tiny_llama, tokenizer, settings={"sampling": "reshuffle", "active_layers": 3})


@pytest.mark.parametrize(("first", "steps"), [(None, [0, 5, 10]), (4, [0, 4, 9, 14]), (7, [0, 7, 12])])
def test_the_first_period_may_have_a_length_of_its_own(first: int | None, steps: list[int]) -> None:
    one = sampler(interval_steps=5, first_period_steps=first)
    drawn(one, range(15))
    assert [draw["step"] for draw in one.proof()["draws"]] == steps  # type: ignore[index, union-attr, call-overload]


def test_a_first_period_like_the_others_is_none_of_its_own_so_that_one_run_has_one_spelling() -> None:
    assert settings(interval_steps=5, first_period_steps=5) == settings(interval_steps=5)
    assert settings(interval_steps=5, first_period_steps=4).first_period_steps == 4


def test_probabilities_that_change_are_followed_kept_and_shown() -> None:
    one, other = (sampler(3, [0.5, 0.25, 0.25], active_layers=1) for _ in range(2))
    assert "probability_history" not in one.proof()
    drawn(one, range(3))
    one.set_probabilities(3, [0.0, 3.0, 1.0])
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert 0 not in {block for (block,) in drawn(one, range(3, 60))[3:]}
    assert drawn(other, range(3, 60)) == drawn(one, [])
    one.set_probabilities(60, [0.0, 0.0, 2.0])
    assert drawn(one, range(60, 70))[60:] == [[2]] * 10
    assert one.proof()["probabilities"] == [0.0, 0.0, 1.0]
    assert json.loads(json.dumps(one.proof()))["probability_history"] == [
        {"step": 0, "probabilities": [0.5, 0.25, 0.25]},
        {"step": 3, "probabilities": [0.0, 0.75, 0.25]},
        {"step": 60, "probabilities": [0.0, 0.0, 1.0]},
    ]


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ([1.0, 0.0, 0.0], "active_layers is 2, but only 1 blocks"),
        ([1.0, float("nan"), 1.0], "not all finite and >= 0"),
        ([0.0, 0.0, 0.0], "not all finite and >= 0 with one above 0"),
    ],
)
def test_probabilities_from_which_nothing_can_be_drawn_are_refused(weights: list[float], sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        sampler(3).set_probabilities(0, weights)


DROP = {"state_policy": "drop", "returning_step_counter": "reset"}


@pytest.mark.parametrize("reset", [False, True])
def test_state_is_dropped_at_every_draw_if_asked_for_a_block_that_follows_itself_too(
    reset: bool, tiny_llama: Path, tokenizer: Any
) -> None:
    # All four blocks are drawn each time, so each follows itself.
    own = {**DROP, "active_layers": 4, "interval_steps": 2, "reset_each_period": reset}
    _, _, loop = train("lisa", tiny_llama, tokenizer, num_steps=5, settings=own)
    counters = {state["step"] for state in loop.optimizer.state.values()}
    assert counters == ({1} if reset else {5})
    assert len(loop.optimizer.state) == len(list(loop.model.parameters()))


def test_dropping_all_state_and_keeping_it_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="set state_policy = 'drop', not 'keep'"):
        settings(reset_each_period=True)


def test_settings_that_say_nothing_leave_a_run_its_identity() -> None:
    later = dict(later_settings(LayerSampledConfig))
    assert {"first_period_steps": None, "reset_each_period": False}.items() <= later.items()
    plain = make_spec(config={"active_layers": 2}, later=later)
    said = make_spec(config={"active_layers": 2, "first_period_steps": None, "reset_each_period": False}, later=later)
    assert said.run_id == plain.run_id
    assert make_spec(config={"active_layers": 2, "reset_each_period": True}, later=later).run_id != plain.run_id
    assert make_spec(config={"active_layers": 2, "first_period_steps": 3}, later=later).run_id != plain.run_id
