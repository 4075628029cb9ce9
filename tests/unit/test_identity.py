"""What identifies a run, and how a setting that came later leaves it as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import ValidationError

from harness.catalogue.models import BaseModelSpec
from harness.errors import HarnessError
from harness.expansion import expand
from harness.method import METHODS, MethodConfig
from harness.settings import EvaluationSettings, Later, TrainSettings, later_settings
from harness.spec import RunSpec
from harness.store import parse_files
from harness.suite import Suite
from tests.records import TRAIN, make_spec

FIXTURES = Path(__file__).parent / "fixtures_records"
COMMITTED = Path(__file__).parents[2] / "results" / "records"
MODELS = {"a": BaseModelSpec(name="a", architecture="LlamaForCausalLM", hub_id="someone/a")}


class First(MethodConfig):
    """A plug-in's settings as they were published, one of them called like a later setting of the harness."""

    factor: float = 1.0
    subtasks: int | None = None


class Second(First):
    """The same once a setting was added."""

    steps_ahead: Annotated[int, Later(0)] = 0


class Third(Second):
    """The same once the default of the added setting is another."""

    steps_ahead: Annotated[int, Later(0)] = 2


class Unmarked(First):
    """The same with a setting whose author marked nothing."""

    steps_ahead: int = 0


@pytest.fixture
def run_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function: the run of a plug-in whose settings are of a class."""
    full = METHODS.get("full")

    def plug_in_run(config: type[MethodConfig], **settings: Any) -> RunSpec:
        method = type("PlugIn", (full,), {"Config": config, "check": classmethod(lambda *_: None)})
        monkeypatch.setitem(METHODS._classes, "plug-in", method)
        suite = Suite.model_validate(
            {
                "name": "tiny",
                "version": 1,
                "protocol": "test",
                "description": "",
                "models": ["a"],
                "labels": ["plug-in"],
                "seeds": [1],
                "train": TRAIN.model_dump(),
                "evaluation": {"tasks": ["piqa"], "rows": "hub"},
                "settings": {"plug-in": settings},
            }
        )
        return expand(suite, models=MODELS, sources={})[0]

    return plug_in_run


def read_back(spec: RunSpec) -> RunSpec:
    return RunSpec.model_validate(json.loads(spec.model_dump_json()))


def test_a_later_setting_of_a_plug_in_keeps_its_runs_at_the_old_behaviour(run_of: Any) -> None:
    before = run_of(First, factor=2.0)
    assert run_of(Second, factor=2.0).run_id == before.run_id
    assert run_of(Second, factor=2.0).config["steps_ahead"] == 0, "a record says every setting in effect"
    assert run_of(Second, factor=2.0, steps_ahead=1).run_id != before.run_id
    assert run_of(Third, factor=2.0).run_id == run_of(Second, factor=2.0, steps_ahead=2).run_id
    assert run_of(Third, factor=2.0, steps_ahead=0).run_id == before.run_id
    assert run_of(Unmarked, factor=2.0).run_id != before.run_id


def test_a_setting_of_a_plug_in_stays_in_its_identity_whatever_it_is_called(run_of: Any) -> None:
    spec = run_of(First)
    assert spec.asked()["config"]["subtasks"] is None
    assert spec.run_id != spec.model_copy(update={"config": {"factor": 1.0, "update_in_backward": False}}).run_id


@pytest.mark.parametrize("settings", [{}, {"steps_ahead": 1}])
def test_a_record_keeps_its_run_id_without_its_method(
    run_of: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = run_of(Second, **settings)
    monkeypatch.delitem(METHODS._classes, "plug-in")
    with pytest.raises(HarnessError):
        METHODS.get("plug-in")
    assert read_back(spec) == spec
    assert read_back(spec).run_id == spec.run_id


def test_a_spec_of_before_knows_the_first_later_settings() -> None:
    ids = {
        make_spec(config=config).run_id
        for config in ({"factor": 1.0}, {"factor": 1.0, "two_pass_clipping": False, "project_vocabulary": False})
    }
    assert len(ids) == 1
    assert make_spec(config={"factor": 1.0, "two_pass_clipping": True}).run_id not in ids
    said = make_spec(config={"factor": 1.0, "two_pass_clipping": False}, later={})
    assert said.run_id not in ids, "a spec that says what came later is taken at its word"


@pytest.mark.parametrize("settings", [TrainSettings, EvaluationSettings, RunSpec, *map(METHODS.get, METHODS.names())])
def test_a_later_setting_is_declared_at_a_value_it_may_have(settings: Any) -> None:
    model = getattr(settings, "Config", settings)
    for name, value in later_settings(model).items():
        assert json.loads(json.dumps(value)) == value
        try:
            model.model_validate({name: value})
        except ValidationError as error:
            assert name not in {fault["loc"][0] for fault in error.errors() if fault["loc"]}


@pytest.mark.parametrize(
    "file", [*sorted(FIXTURES.glob("*.jsonl")), *sorted(COMMITTED.glob("*.jsonl"))], ids=lambda file: file.stem
)
def test_every_run_keeps_the_id_that_it_was_recorded_under(file: Path) -> None:
    records = parse_files([(file.name, file.read_bytes())]).records
    assert records
    for record in records:
        assert record.spec.run_id == record.run_id
        assert read_back(record.spec).run_id == record.run_id


def test_reading_a_record_needs_neither_suites_nor_methods() -> None:
    code = "import sys, harness.record; print(*(name for name in sys.modules if name.split('.')[0] == 'harness'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {f"harness.{name}" for name in ("suite", "labels", "tuned", "method", "registry", "datasets")}
    others = {name for name in loaded if not name.startswith("harness.record")}  # which stands in four files
    assert len(others) <= 8, others
