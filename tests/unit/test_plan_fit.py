"""``harness plan --fit``: what it says fits is predicted to fit, one more is not, and its settings are what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.commands import plan as plan_command
from harness.commands.plan_fit import Fit, Room, all_at_once, fits_as_json, fits_of, print_fits
from harness.errors import HarnessError
from harness.expansion import expand, load_suite, parse_assignment
from harness.planning import worker
from harness.planning.largest import Largest, largest
from harness.planning.making_fit import making_fit
from harness.planning.questions import PlanAnswer, PlanTask, Predictor
from harness.planning.savers import as_arguments, changed, savers
from harness.record_training import MemoryBreakdown, Prediction
from harness.spec import RunSpec
from tests.unit.test_prediction import SMALL, small_spec

CONTEXT = 1_000_000
assert SMALL.shape is not None
FLAT = SMALL.model_copy(update={"shape": SMALL.shape.model_copy(update={"num_layers": 2, "max_positions": 128})})
"""A model that is predicted soon."""


def searched(needs: Callable[[int], int | None], start: int, limit: int, memory: int) -> tuple[Largest, list[int]]:
    search, asked = largest(start, limit, memory), []
    size = next(search)
    while True:
        asked.append(size)
        try:
            size = search.send(needs(size))
        except StopIteration as end:
            return end.value, asked


@pytest.mark.parametrize("start", [1, 7, 16, 300])
@pytest.mark.parametrize("answer", [1, 2, 15, 16, 17, 250, 299])
@pytest.mark.parametrize("bend", [0, 40])
def test_the_largest_that_fits_is_found_of_whatever_rises(start: int, answer: int, bend: int) -> None:
    def needs(size: int) -> int:
        return 1000 + max(size, bend) * 10 + size

    found, asked = searched(needs, start, 300, needs(answer))
    assert found == Largest(answer, needs(answer), at_limit=False)
    assert {answer, answer + 1} <= set(asked)
    assert len(asked) == len(set(asked)) <= 16


def test_where_not_even_one_fits_that_is_said() -> None:
    assert searched(lambda size: 10 + size, 8, 64, 10) == (Largest(0, 11, at_limit=False), [8, 1])
    assert searched(lambda size: None, 1, 64, 10) == (Largest(0, None, at_limit=False), [1])


def test_where_all_fit_the_limit_is_said() -> None:
    assert searched(lambda size: size, 8, 50, 100) == (Largest(50, 50, at_limit=True), [8, 16, 32, 50])


def test_what_cannot_be_had_does_not_fit() -> None:
    found, _ = searched(lambda size: size if size <= 20 else None, 8, 64, 100)
    assert found == Largest(20, 20, at_limit=False)


def predicted(spec: RunSpec) -> Prediction:
    answer = worker.answer(asked(spec, Path("nowhere")))
    assert answer.prediction is not None
    return answer.prediction


def asked(spec: RunSpec, folder: Path) -> PlanTask:
    return PlanTask(spec=spec, model=FLAT, device="cuda", horizon="first", cache_folder=folder)


def test_what_is_said_to_fit_is_predicted_to_fit_and_one_more_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "_ask", _in_this_process)
    spec = small_spec("full", dtype="bf16", gradient_checkpointing=True)
    train = spec.train
    assert train is not None
    room = Room("a device", predicted(spec).peak_bytes + CONTEXT + 200_000, CONTEXT)
    (found,) = fits_of([spec], room, lambda one: asked(one, tmp_path), "0")
    assert found.fits and found.rows is not None and found.tokens is not None and found.way is None
    for setting, size in (("batch_size", found.rows.size), ("sequence_length", found.tokens.size)):
        at, above = (spec.model_copy(update={"train": train.model_copy(update={setting: size + i})}) for i in (0, 1))
        assert predicted(at).peak_bytes + CONTEXT <= room.memory < predicted(above).peak_bytes + CONTEXT
        assert size >= getattr(train, setting)


def _in_this_process(self: Predictor, tasks: Any, processes: int) -> Any:
    for key, task in tasks.items():
        yield key, self.keep(task, worker.answer(task))


@pytest.mark.parametrize("label", ["lora", "owlore"])
def test_settings_that_make_a_label_fit_do(label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Predictor, "_ask", _in_this_process)
    spec = small_spec(label, dtype="bf16", gradient_checkpointing=False)
    at_one_row = changed(spec, {"batch_size": 1, "gradient_accumulation_steps": 4})
    assert at_one_row is not None
    room = Room("a device", predicted(at_one_row).peak_bytes + CONTEXT - 1, CONTEXT)
    (found,) = fits_of([spec], room, lambda one: asked(one, tmp_path), "0")
    way = found.way
    assert not found.fits and way is not None and way.exact
    again = _as_pasted(label, as_arguments(way.changes))
    assert again.train is not None and again.train.batch_size * again.train.gradient_accumulation_steps == 4
    assert predicted(again).peak_bytes + CONTEXT == way.needed_bytes <= room.memory


def _as_pasted(label: str, arguments: str) -> RunSpec:
    """Return the run that ``--set`` makes of the small run of a label."""
    base = small_spec(label, dtype="bf16", gradient_checkpointing=False)
    assert base.train is not None
    suite = load_suite("commonsense")
    train = {key: value for key, value in base.train.model_dump(mode="json").items() if value is not None}
    suite = suite.model_copy(update={"train": train, "settings": {label: base.config}})
    overrides = dict(parse_assignment(text) for text in arguments.split("--set ") if text for text in [text.strip()])
    return expand(suite, models={"small": SMALL}, sources={}, labels=[label], seeds=[1], overrides=overrides)[0]


def needing(num_bytes: int, operations: int = 100) -> PlanAnswer:
    return PlanAnswer(
        prediction=Prediction(
            device="cuda",
            horizon="first",
            weights_bytes=0,
            gradients_bytes=0,
            optimizer_state_bytes=0,
            peak_bytes=num_bytes,
            peak_phase="backward",
            peak_step=0,
            at_peak=MemoryBreakdown(
                weights_bytes=0, gradients_bytes=0, optimizer_state_bytes=0, activations_bytes=num_bytes, other_bytes=0
            ),
            reserved_bytes=None,
            trainable_params=1,
            flops_per_step=operations,
            recomputed_flops_per_step=0,
            predict_seconds=0.0,
            torch="0",
        )
    )


def judged(label: str, answer: Callable[[dict[str, Any]], PlanAnswer], memory: int, **train: Any) -> Any:
    """Return what makes a run fit where its needs are made up."""
    spec = small_spec(label, dtype="bf16", **train)
    as_it_is = answer(_settings(spec)).prediction
    assert as_it_is is not None
    search = making_fit(spec, as_it_is, 512, lambda told: told.peak_bytes, memory)

    def ask(runs: Sequence[RunSpec]) -> list[PlanAnswer]:
        return [answer(_settings(run)) for run in runs]

    return all_at_once({0: search}, ask)[0]


def _settings(spec: RunSpec) -> dict[str, Any]:
    assert spec.train is not None
    return {**spec.config, **spec.train.model_dump(mode="json")}


def test_fewer_rows_at_once_come_first_and_as_many_as_fit() -> None:
    way, _ = judged("full", lambda now: needing(10 * now["batch_size"]), 25)
    assert dict(way.changes) == {"batch_size": 2, "gradient_accumulation_steps": 2}
    assert way.exact


def test_the_exact_saver_that_costs_least_is_taken() -> None:
    def answer(now: dict[str, Any]) -> PlanAnswer:
        saved = bool(now["loss_chunk_columns"]) or now["gradient_checkpointing"]
        operations = 100 + 30 * now["gradient_checkpointing"] + 2 * bool(now["loss_chunk_columns"])
        return needing(80 if saved else 100, operations)

    way, _ = judged("full", answer, 90, gradient_checkpointing=False)
    assert way.changes["loss_chunk_columns"] and not way.changes.get("gradient_checkpointing")
    assert way.operations == pytest.approx(1.02)


def test_savers_are_gathered_and_the_needless_left_out() -> None:
    def answer(now: dict[str, Any]) -> PlanAnswer:
        return needing(100 - 20 * bool(now["loss_chunk_columns"]) - 20 * now["gradient_checkpointing"])

    way, _ = judged("full", answer, 65, gradient_checkpointing=False)
    assert set(way.changes) - {"batch_size", "gradient_accumulation_steps"} == {
        "loss_chunk_columns",
        "gradient_checkpointing",
    }


def test_what_changes_the_result_comes_last_and_is_told_apart() -> None:
    def answer(now: dict[str, Any]) -> PlanAnswer:
        return needing(50 if now["gradient_accumulation_steps"] == now["batch_size"] == 1 else 100)

    way, _ = judged("full", answer, 60)
    assert not way.exact and way.changes["gradient_accumulation_steps"] == 1


def test_a_shorter_row_is_tried_last() -> None:
    way, _ = judged("full", lambda now: needing(now["sequence_length"]), 30)
    assert not way.exact and way.changes["sequence_length"] == 30


def test_where_nothing_helps_the_least_is_said() -> None:
    way, least = judged("full", lambda now: needing(100 - bool(now["loss_chunk_columns"])), 10)
    assert way is None and least.needed_bytes == 99 and "loss_chunk_columns" in least.changes


@pytest.mark.parametrize("label", ["full", "lora", "galore", "lisa", "owlore"])
def test_a_saver_is_one_that_the_method_has_and_does_not_use(label: str) -> None:
    spec = small_spec(label, dtype="bf16")
    for one in savers(spec):
        with_it = changed(spec, one.changes)
        assert with_it is not None and with_it != spec
        assert all(_settings(with_it)[key] == value for key, value in one.changes.items())
        assert as_arguments(one.changes).count("--set ") == len(one.changes)


def fits(width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("harness.commands._output.PIPE_WIDTH", width)
    spec = small_spec("owlore-code" if width else "owlore", dtype="bf16")
    answer = needing(23 << 30)
    way, _ = judged("full", lambda now: needing(10 * now["batch_size"]), 25)
    room = Room("rtx-4090", 24 * 10**9, CONTEXT)
    some = Largest(1024, 1, at_limit=True)
    found = [
        Fit(spec, answer, True, some, Largest(131072, 1, at_limit=False), None, None),
        Fit(spec, answer, False, some, some, way, way),
        Fit(spec, answer, False, Largest(0, 1, at_limit=False), some, None, way),
        Fit(spec, PlanAnswer(error="no", refused=True), False, None, None, None, None),
    ]
    print_fits(found, room)
    assert len(json.loads(fits_as_json(found, room))) == len(found)
    return capsys.readouterr().out


def test_the_table_fits_80_columns_and_settings_can_be_pasted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = fits(80, capsys, monkeypatch)
    assert "1024+" in shown and "131072" in shown and "exact savers" in shown and "nothing does" in shown
    assert re.search(r"^  --set batch_size=2 --set gradient_accumulation_steps=2$", shown, re.MULTILINE)
    assert "refused: no" in shown


def test_without_a_memory_there_is_nothing_to_fit_into(tmp_path: Path) -> None:
    from harness.commands.requests import SelectionRequest

    with pytest.raises(HarnessError, match="--fit: nothing says what is to be fitted into"):
        plan_command.plan(SelectionRequest(suite="commonsense", models=("llama2-7b",), labels=("full",)), fit=True)


def test_searches_are_asked_together() -> None:
    rounds: list[int] = []

    def search(count: int) -> Generator[list[RunSpec], list[PlanAnswer], int]:
        for _ in range(count):
            yield [small_spec("full")]
        return count

    def ask(runs: Sequence[RunSpec]) -> list[PlanAnswer]:
        rounds.append(len(runs))
        return [PlanAnswer()] * len(runs)

    assert all_at_once({"a": search(1), "b": search(3), "c": search(0)}, ask) == {"a": 1, "b": 3, "c": 0}
    assert rounds == [2, 1, 1]
