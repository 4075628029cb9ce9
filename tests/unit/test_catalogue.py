"""The catalogue: whose names there are, how strictly they are read, and what takes the place of what."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.catalogue.models import BaseModelSpec
from harness.catalogue.packaged_tasks import (
    COMMONSENSE_TASKS,
    MMLU_GROUPS,
    MMLU_SUBJECTS,
    check_packaged_rows,
    packaged_tasks,
)
from harness.catalogue.resolved import Catalogue, load_catalogue, packaged_catalogue
from harness.errors import HarnessError
from harness.evaluation.task_names import _mmlu_names
from harness.expansion import catalogue_for, expand, load_suite
from harness.settings import EvaluationSettings
from tests.unit.test_suite import TEXT

OWN = """
[base_models.mine]
architecture = "LlamaForCausalLM"
folder = "weights"
[datasets.rows]
layout = "questions"
file = "data/rows.jsonl"
num_rows = 8
[methods.soft]
alias_of = "galore"
settings = { scale = 0.1 }
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "names.toml"
    file.write_text(text)
    return file


def test_a_file_of_ones_own_adds_to_what_there_is(tmp_path: Path) -> None:
    known, packaged = load_catalogue(written(tmp_path, OWN)), packaged_catalogue()
    assert set(known.models) - set(packaged.models) == {"mine"}
    assert known.model("mine").folder == tmp_path / "weights", "a path is relative to the file that it stands in"
    assert known.dataset("rows").file == tmp_path / "data" / "rows.jsonl"
    assert known.labels["soft"].values()["scale"] == 0.1
    assert known.labels["soft"].method == "galore"
    assert packaged_catalogue() == packaged


def test_the_tables_of_a_suite_are_read_as_those_of_a_catalogue(tmp_path: Path) -> None:
    text = TEXT.replace('"galore"]', '"soft"]').replace('models = ["a"]', 'models = ["mine"]')
    (tmp_path / "suite.toml").write_text(text + OWN)
    (tmp_path / "plain.toml").write_text(text)
    named = load_catalogue(written(tmp_path, OWN))
    own, plain = load_suite(str(tmp_path / "suite.toml")), load_suite(str(tmp_path / "plain.toml"), named)
    of_suite = catalogue_for(own, "suite")
    assert of_suite == catalogue_for(plain, "suite", named)
    runs = [
        expand(suite, models={"mine": known.model("mine")}, sources={}, known=known)
        for suite, known in ((own, of_suite), (plain, named))
    ]
    assert runs[0] == runs[1]
    with pytest.raises(HarnessError, match="there is no label 'soft'"):
        load_suite(str(tmp_path / "plain.toml"))


def test_a_suite_of_ones_own_survives_its_json(tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(TEXT + OWN[: OWN.index("[methods")])
    suite = load_suite(str(tmp_path / "suite.toml"))
    assert suite.base_models and suite.datasets
    assert type(suite).model_validate_json(suite.model_dump_json()) == suite


FAULTS = {
    "a typo": ("folder", "foldr", "has no setting 'foldr' in base_models.mine; did you mean 'folder'"),
    "a typo in data": ("layout", "layou", "has no setting 'layou' in datasets.rows; did you mean 'layout'"),
    "two sources": ('folder = "weights"', 'folder = "w"\nhub_id = "a/b"', r"\[base_models.mine\] gives folder and hub"),
    "two sources of rows": ("num_rows = 8", 'hub_id = "a/b"\npath = "c"', r"\[datasets.rows\] gives file and hub_id"),
    "no source": ('folder = "weights"', "", "a model needs hub_id, packaged, folder, or a shape"),
    "a checksum": ('folder = "weights"', 'folder = "w"\nchecksum = "0"', "has no setting 'checksum': the harness"),
    "a name": ('folder = "weights"', 'folder = "w"\nname = "other"', r"\[base_models.mine\] has no setting 'name'"),
    "weights": ('folder = "weights"', 'folder = "w"\nweights = "random"', "has no setting 'weights'"),
    "a packaged model's name": ("base_models.mine", "base_models.llama2-7b", "takes the name of a model that there is"),
    "a packaged data set's": ("datasets.rows", "datasets.gsm8k", "takes the name of a data set that there is already"),
    "a kind of rows": ("datasets.rows", "datasets.hub", "a name that kinds of evaluation rows have: choose another"),
    "no table": ("[base_models.mine]", "[base_models]\nmine = 1\n[base_models.other]", "mine is int, expected a table"),
    "a list": (OWN[: OWN.index("[datasets")], "base_models = []\n", r"is list, expected tables \[base_models.NAME\]"),
    "no name": ("base_models.mine", 'base_models."a b"', "string should match pattern"),
    "no data": ("[datasets.rows]", "[dataset.rows]", "has no setting 'dataset'; did you mean 'datasets'"),
}


@pytest.mark.parametrize("kind", ["catalogue", "suite"])
@pytest.mark.parametrize(("old", "new", "sentence"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_in_an_entry_is_one_sentence(tmp_path: Path, kind: str, old: str, new: str, sentence: str) -> None:
    text = OWN.replace(old, new, 1)
    assert text != OWN
    # What stands before the first table of a suite must stay there.
    file = written(tmp_path, text if kind == "catalogue" else text + TEXT if text.startswith("base_") else TEXT + text)
    with pytest.raises(HarnessError, match=sentence) as caught:
        load_catalogue(file) if kind == "catalogue" else load_suite(str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_models_says_what_it_is_called(tmp_path: Path) -> None:
    text = OWN.replace("base_models.mine", "models.mine")
    with pytest.raises(HarnessError, match="has no setting 'models'; did you mean 'base_models'"):
        load_catalogue(written(tmp_path, text))
    with pytest.raises(HarnessError, match=r"those to run; one of the suite's own is \[base_models.NAME\]"):
        load_suite(str(written(tmp_path, TEXT + text)))


def test_a_label_is_redefined_by_a_suite_alone(tmp_path: Path) -> None:
    text = OWN.replace("methods.soft", "methods.lora")
    with pytest.raises(HarnessError, match=r"\[methods.lora\] takes the name of a label that there is already"):
        load_catalogue(written(tmp_path, text))
    (tmp_path / "suite.toml").write_text(TEXT + text)
    suite = load_suite(str(tmp_path / "suite.toml"))
    assert catalogue_for(suite, "suite").labels["lora"].method == "galore"


def test_a_suite_takes_no_name_of_the_users_catalogue_either(tmp_path: Path) -> None:
    known = load_catalogue(written(tmp_path, OWN))
    (tmp_path / "suite.toml").write_text(TEXT + OWN[: OWN.index("[datasets")])
    with pytest.raises(HarnessError, match=r"suite.toml: \[base_models.mine\] takes the name of a model"):
        load_suite(str(tmp_path / "suite.toml"), known)


def test_a_catalogue_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"names.toml: cannot be read"):
        load_catalogue(tmp_path / "names.toml")


def test_a_given_file_stands_in_and_says_nothing_of_its_length(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    known: Catalogue = packaged_catalogue().with_files({"gsm8k": file})
    assert (known.dataset("gsm8k").file, known.dataset("gsm8k").num_rows) == (file, None)
    assert packaged_catalogue().dataset("gsm8k").num_rows == 7473
    with pytest.raises(HarnessError, match=r"--data random-tokens=.*: these rows are drawn from the seed"):
        packaged_catalogue().with_files({"random-tokens": file})


@pytest.mark.parametrize("rows", ["packaged", "packaged-scored"])
@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        (
            ("piqa", "pubmedqa"),
            "^x: there are no packaged rows of task 'pubmedqa'; set rows = 'hub'.* pubmedqa out$",
        ),
        (("mmlu_pro",), "no packaged rows of task 'mmlu_pro'"),
        (("piqaa",), "task 'piqaa'; did you mean 'piqa'.$"),
    ],
)
def test_a_task_has_packaged_rows_or_is_refused(rows: str, tasks: tuple[str, ...], sentence: str) -> None:
    settings = EvaluationSettings(tasks=tasks, rows=rows)  # type: ignore[arg-type]
    with pytest.raises(HarnessError, match=sentence):
        check_packaged_rows(settings, "x")
    check_packaged_rows(settings.model_copy(update={"rows": "hub"}), "x")
    check_packaged_rows(settings.model_copy(update={"tasks": ("piqa", "gsm8k_cot", "mmlu", "mmlu_virology")}), "x")
    with pytest.raises(HarnessError, match="'mmlu_x'"):
        check_packaged_rows(settings.model_copy(update={"tasks": ("mmlu",), "subtasks": ("mmlu_x",)}), "x")


def test_a_suite_that_scores_rows_that_there_are_none_of_is_refused_when_it_is_read(tmp_path: Path) -> None:
    file = written(tmp_path, TEXT.replace('"piqa"', '"piqa", "pubmedqa"'))
    with pytest.raises(HarnessError, match=r"names.toml: \[evaluation\]: there are no packaged rows of task 'pub"):
        load_suite(str(file))
    file.write_text(file.read_text().replace("packaged-scored", "hub"))
    assert load_suite(str(file)).evaluation.tasks == ("piqa", "pubmedqa")


def test_the_packaged_tasks_are_those_of_lm_eval() -> None:
    subjects = {f"mmlu_{subject}" for subject in MMLU_SUBJECTS}
    assert len(MMLU_SUBJECTS) == 57
    assert subjects | set(MMLU_GROUPS) == _mmlu_names()
    assert packaged_tasks() - subjects - set(MMLU_GROUPS) == {*COMMONSENSE_TASKS, "gsm8k", "gsm8k_cot"}


def test_a_model_of_ones_own_is_identified_as_a_given_folder_is(tmp_path: Path, tiny_llama: Path) -> None:
    from harness.preparing.assets import resolve_model

    known = load_catalogue(written(tmp_path, OWN.replace("weights", str(tiny_llama))))
    given = BaseModelSpec(name="mine", architecture="LlamaForCausalLM", hub_id="someone/else")
    assert resolve_model(known.model("mine")).identity() == resolve_model(given, tiny_llama).identity()
