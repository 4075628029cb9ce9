"""The JSON schemas of suite and catalogue files, and the page of their keys: what the models say, and nothing older."""

from __future__ import annotations

import copy
import importlib.resources
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from pydantic import BaseModel

from harness.catalogue.labels import load_labels
from harness.errors import HarnessError
from harness.expansion import load_suite
from harness.key_types import words_of
from harness.method import METHODS
from harness.schema import KINDS, field_docs, schema_file, schema_of, schema_text
from harness.settings import TrainSettings
from harness.suite import Suite, suite_names
from harness.suite_keys import PAGE, _all_tables, page
from tests.plug_ins import METHOD, install, look_again

ROOT = Path(__file__).parents[2]
AGAIN = "write them anew: python -m harness.suite_keys"


def packaged(kind: str) -> dict[str, Any]:
    return json.loads((importlib.resources.files("harness.suites") / schema_file(kind)).read_text("utf-8"))  # type: ignore[arg-type,no-any-return]


def table_of(name: str) -> dict[str, Any]:
    return tomllib.loads((importlib.resources.files("harness.suites") / f"{name}.toml").read_text("utf-8"))


def faults(kind: str, table: dict[str, Any]) -> list[str]:
    return [f"{fault.json_path}: {fault.message}" for fault in Draft7Validator(packaged(kind)).iter_errors(table)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_packaged_schema_is_what_the_models_give(kind: Any) -> None:
    text = (importlib.resources.files("harness.suites") / schema_file(kind)).read_text("utf-8")
    assert text == schema_text(kind, plug_ins=False), AGAIN
    Draft7Validator.check_schema(json.loads(text))


def test_the_page_of_keys_is_what_the_models_give() -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(), AGAIN


@pytest.mark.parametrize("name", suite_names())
def test_every_packaged_suite_is_valid_by_the_schema(name: str) -> None:
    assert faults("suite", table_of(name)) == []


def test_the_packaged_labels_and_entries_are_valid_by_the_catalogues_schema() -> None:
    tables = {"base_models": "models", "datasets": "datasets", "methods": "methods"}
    assert faults("catalogue", {kind: table_of(file) for kind, file in tables.items()}) == []


def broken(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    table = copy.deepcopy(table_of("quickstart"))
    change(table)
    return table


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a key is missing": (lambda t: t.pop("protocol"), "'protocol' is a required property"),
    "a key is unknown": (lambda t: t.update(modles=[]), "'modles' was unexpected"),
    "a text for a list": (lambda t: t.update(models="x"), "$.models: 'x' is not of type 'array'"),
    "a name with a slash": (lambda t: t.update(name="../x"), "'../x' does not match"),
    "a seed below 0": (lambda t: t.update(seeds=[-1]), "-1 is less than the minimum"),
    "no such weights": (lambda t: t.update(weights="none"), "'none' is not one of ['pretrained', 'random']"),
    "unknown in train": (lambda t: t["train"].update(batch_sise=1), "$.train: Additional properties"),
    "a text in train": (
        lambda t: t["train"].update(batch_size="x"),
        "$.train.batch_size: 'x' is not of type 'integer'",
    ),
    "0 in train": (lambda t: t["train"].update(batch_size=0), "$.train.batch_size"),
    "no such prompt": (lambda t: t["train"].update(prompt="chatty"), "$.train.prompt: 'chatty' is not one of"),
    "two lengths": (lambda t: t["train"].update(num_epochs=1), "$.train"),
    "unknown in evaluation": (lambda t: t["evaluation"].update(taks=[]), "$.evaluation: Additional properties"),
    "a fraction of items": (lambda t: t["evaluation"].update(limit=0.5), "$.evaluation.limit"),
    "an unknown setting of a label": (lambda t: t["settings"]["galore"].update(rnak=1), "'rnak' was unexpected"),
    "a setting of another method": (lambda t: t["settings"]["full"].update(rank=1), "$.settings.full"),
    "a wrong setting of a label": (lambda t: t["settings"]["galore"].update(rank=0), "$.settings.galore.rank"),
    "training of a label": (lambda t: t["settings"]["galore"].update(batch_size=0), "$.settings.galore.batch_size"),
    "training of what trains not": (lambda t: t["settings"].update(base={"batch_size": 1}), "$.settings.base"),
    "a sweep that is no list": (lambda t: t.update(sweep={"galore": {"rank": 4}}), "$.sweep.galore.rank"),
    "a wrong value in a sweep": (lambda t: t.update(sweep={"galore": {"rank": [4, 0]}}), "$.sweep.galore.rank[1]"),
    "unknown in a model": (
        lambda t: t.update(base_models={"m": {"architecture": "x", "foldr": "x"}}),
        "$.base_models.m",
    ),
    "a model's own name": (lambda t: t.update(base_models={"m": {"architecture": "x", "name": "n"}}), "'name' was"),
    "a model's checksum": (lambda t: t.update(base_models={"m": {"architecture": "x", "checksum": "n"}}), "'checksum'"),
    "a model called ..": (lambda t: t.update(base_models={"../m": {"architecture": "x"}}), "'../m' does not match"),
    "no such layout": (lambda t: t.update(datasets={"d": {"layout": "rows"}}), "$.datasets.d.layout"),
    "a wrong setting of one's own label": (
        lambda t: t.update(labels=["m"], settings={}, methods={"m": {"method": "galore", "settings": {"rank": "x"}}}),
        "$.methods.m.settings.rank",
    ),
    "a wrong setting beside its source": (
        lambda t: t.update(
            labels=["m"],
            settings={},
            methods={"m": {"alias_of": "galore", "settings": {"rank": {"value": 0, "source": "ours"}}}},
        ),
        "$.methods.m.settings.rank",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_suite_that_is_broken_is_refused_by_the_schema_and_by_the_harness(what: str, tmp_path: Path) -> None:
    change, said = BROKEN[what]
    table = broken(change)
    found = faults("suite", table)
    assert len(found) == 1 and said in found[0], found
    file = tmp_path / "broken.toml"
    file.write_text(toml(table))
    with pytest.raises(HarnessError):
        load_suite(str(file))


def toml(table: dict[str, Any]) -> str:
    """Return a table as TOML, its inner tables inline."""

    def value(one: Any) -> str:
        if isinstance(one, dict):
            return "{ " + ", ".join(f"{json.dumps(key)} = {value(inner)}" for key, inner in one.items()) + " }"
        if isinstance(one, list):
            return f"[{', '.join(map(value, one))}]"
        return json.dumps(one)

    return "".join(f"{json.dumps(key)} = {value(one)}\n" for key, one in table.items())


def test_the_settings_of_every_label_are_those_of_its_method_and_of_training() -> None:
    known = packaged("suite")
    for label, entry in load_labels().items():
        reference = known["properties"]["settings"]["properties"][label]["$ref"]
        keys = set(known["definitions"][reference.rpartition("/")[2]]["properties"])
        method = METHODS.get(entry.method)
        train = set(TrainSettings.model_fields) if method.trains else {"dtype"}
        assert keys == train | set(method.Config.model_fields), label


def test_every_key_has_a_meaning() -> None:
    known: list[type[BaseModel]] = [Suite, TrainSettings, *(model for _, model, _ in _all_tables(Suite))]
    known += [METHODS.get(name).Config for name in METHODS.names() if METHODS.plug_in(name) is None]
    assert len(known) > 12
    for model in known:
        lacking = set(model.model_fields) - set(field_docs(model)) - {"name"}
        assert not lacking, f"{model.__name__}: write below each of {sorted(lacking)} what it means"


def test_what_a_reader_of_toml_cannot_know_is_not_in_the_descriptions() -> None:
    text = "".join(schema_text(kind, plug_ins=False) for kind in KINDS) + page()
    assert '"null"' not in text
    assert "``" not in text and ":func:" not in text and "None:" not in text


def test_a_plug_ins_settings_are_in_the_schema_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    METHODS.names()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    install(tmp_path / "site", "plugdist", "1.0", "plugmodule.py", METHOD, entry="mine = plugmodule:PlugIn")
    look_again(monkeypatch, "plugmodule")
    assert "mine" in schema_of("suite")["properties"]["settings"]["properties"]
    assert "mine" not in schema_of("suite", plug_ins=False)["properties"]["settings"]["properties"]


def test_values_are_said_in_an_order_of_their_own() -> None:
    for values in (["b", "a", "c"], ["c", "b", "a"]):
        assert words_of({"enum": values}, {}) == 'one of "a", "b", "c"'


def test_nothing_hangs_on_what_was_imported_first() -> None:
    """typing takes two literals of the same values for one, whose order is that of the first."""
    code = "from harness.suite_keys import page, schema_text\nprint(page(), schema_text('suite', plug_ins=False))"
    first = "from typing import Literal\nLiteral['randomized', 'svd'] | None\nLiteral['svd', 'randomized'] | None\n"
    turned = first.replace("'randomized', 'svd'", "'svd', 'randomized'", 1)
    found = {
        subprocess.run([sys.executable, "-P", "-c", text + code], capture_output=True, text=True, check=True).stdout
        for text in (first, turned)
    }
    assert len(found) == 1
