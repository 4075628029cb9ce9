"""What the YAML of a task of one's own may say where its folder is not trusted: nothing that runs code.

lm-eval runs what ``!function`` and ``class`` name, looks for metrics that it does not know in a library that downloads
and runs them, unpickles what some builders of ``datasets`` read, and hands generation settings on to transformers, of
which some load code. So what is allowed is listed, and all else is refused with its file and line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from harness.errors import HarnessError, near_miss
from harness.evaluation.yaml_files import Place, Table, check_inside, codes_in

TEXTS = ("doc_to_text", "doc_to_target", "doc_to_choice", "gen_prefix", "description", "doc_to_decontamination_query")
"""Keys whose text is a Jinja template, rendered in a sandbox, or names a column."""
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
KEYS = (
    *TEXTS,
    *SPLITS,
    *(
        "task",
        "task_alias",
        "tag",
        "group",
        "task_list",
        "include",
        "metadata",
        "output_type",
        "num_fewshot",
        "repeats",
    ),
    *("dataset_path", "dataset_name", "dataset_kwargs", "target_delimiter", "fewshot_delimiter", "fewshot_config"),
    *("metric_list", "filter_list", "generation_kwargs", "should_decontaminate"),
)
"""That the YAML of a task may have; ``metadata`` is not read by lm-eval but for its version."""
CODE_KEYS = {
    "class": "names a class of Python",
    "custom_dataset": "is a function",
    "process_docs": "is a function",
    "process_results": "is a function",
    "unsafe_code": "has what the model writes run",
    "use_prompt": "takes templates from elsewhere",
    "doc_to_image": "is for models of images",
    "doc_to_audio": "is for models of sound",
}
FEWSHOT_KEYS = (
    *("sampler", "split", "fewshot_indices", "samples", "doc_to_text", "doc_to_choice", "doc_to_target"),
    *("gen_prefix", "fewshot_delimiter", "target_delimiter"),
)
SAMPLERS = ("default", "first_n")
OUTPUT_TYPES = ("loglikelihood", "multiple_choice", "loglikelihood_rolling", "generate_until")
METRICS = (
    *("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "acc_all", "exact_match", "f1", "mcc", "brier_score"),
    *("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "likelihood", "bypass"),
    *("bleu", "chrf", "chrf++", "ter"),
)
"""Of lm-eval itself."""
AGGREGATIONS = (
    *("mean", "nanmean", "median", "perplexity", "weighted_perplexity", "bits_per_byte", "f1", "matthews_corrcoef"),
    *("bleu", "chrf", "chrf++", "ter", "brier_score", "bypass"),
)
FILTERS = (
    *("regex", "regex_pos", "multi_choice_regex", "remove_whitespace", "lowercase", "uppercase", "map"),
    *("format_span", "take_first", "take_first_k", "majority_vote"),
)
GENERATION = (
    *("until", "do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "num_beams", "early_stopping"),
    *("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens", "min_new_tokens"),
    *("repetition_penalty", "no_repeat_ngram_size", "length_penalty"),
)
FILE_KINDS = ("json", "csv", "parquet", "text")
"""``dataset_path`` of rows in files. Others of ``datasets`` unpickle, or open what a file names."""
FILE_OPTIONS = ("data_files", "field", "sep", "delimiter", "quotechar", "header", "names", "column_names", "encoding")
HUB_OPTIONS = ("revision",)
HUB_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$")
NOT_A_PATH = re.compile(r"://|::|[*?\[\]\0]")
TASK_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
Files = dict[str, tuple[Path, ...]]
"""Of data, by split."""


def check_task(table: Table, root: Path, *, trusted: bool) -> Files:
    """Refuse the YAML of a task that is not trusted and would run code, or says what cannot be; return its data files.

    Args:
        table: With what it includes.
        root: The folder of tasks.
        trusted: Whether the folder's code may be run, and its files may lie anywhere.

    Raises:
        HarnessError: the first fault, with file and line.
    """
    if not trusted:
        _check_code(table)
        _check_keys(table)
        _check_scoring(table)
        _check_fewshot(table)
    return _data_files(table, root, trusted=trusted)


def check_group(table: Table) -> None:
    """Refuse code in the YAML of a group, whose folder may be trusted or not: a task has its own where it may.

    Raises:
        HarnessError: there is some.
    """
    for key, value in table.values.items():
        for code in codes_in(value):
            raise HarnessError(f"{code.place}: {key}: a group holds no code: say {code.tag} {code.text} in its tasks")


def _check_code(table: Table) -> None:
    for key, value in table.values.items():
        for code in codes_in(value):
            what = f"!function {code.text} is code" if code.tag == "!function" else f"the tag {code.tag} is not known"
            raise HarnessError(f"{code.place}: {key}: {what}, {_trust(code.place)}")
        if key in CODE_KEYS and value not in (None, False):
            raise HarnessError(f"{table.at(key)}: {key} {CODE_KEYS[key]}, {_trust(table.at(key))}")


def _trust(place: Place) -> str:
    return f"and a task's YAML runs none unless --trust-tasks names its folder: read {place.file.name} before you do"


def _check_keys(table: Table) -> None:
    values = table.values
    for key in values:
        if key not in (*KEYS, *CODE_KEYS):
            raise HarnessError(f"{table.at(key)}: a task has no key '{key:.60}'{near_miss(key, KEYS)}")
    for key in (*TEXTS, *SPLITS, "target_delimiter", "fewshot_delimiter", "dataset_path", "dataset_name"):
        may = {"doc_to_choice": (str, list, dict), "doc_to_target": (str, int, list), "doc_to_text": (str, int)}
        kinds = may.get(key, (str,))
        if not isinstance(values.get(key), (*kinds, type(None))):
            raise HarnessError(f"{table.at(key)}: {key} is {values[key]!r:.60}, expected text")
    for key in ("num_fewshot", "repeats"):
        value = values.get(key)
        if value is not None and (type(value) is not int or value < (0 if key == "num_fewshot" else 1)):
            raise HarnessError(f"{table.at(key)}: {key} is {value!r:.60}, expected a whole number")
    _check_one_of(table, "output_type", values.get("output_type", OUTPUT_TYPES[0]), OUTPUT_TYPES)
    if values.get("doc_to_text") is None and values.get("output_type") != "loglikelihood_rolling":
        raise HarnessError(f"{table.at('doc_to_text')}: the task has no doc_to_text: give the template of its question")
    if values.get("doc_to_target") is None:
        raise HarnessError(f"{table.at('doc_to_target')}: the task has no doc_to_target: give that of its answer")
    if not (values.get("test_split") or values.get("validation_split")):
        raise HarnessError(f"{table.at('test_split')}: the task has neither test_split nor validation_split to score")
    if values.get("output_type") == "multiple_choice" and not values.get("doc_to_choice"):
        raise HarnessError(f"{table.at('doc_to_choice')}: output_type = multiple_choice needs doc_to_choice")


def _check_scoring(table: Table) -> None:
    for metric in _tables(table, "metric_list"):
        if metric.get("hf_evaluate") not in (None, False):
            raise HarnessError(
                f"{table.at('metric_list')}: metric_list: hf_evaluate downloads and runs the code of a metric, "
                f"{_trust(table.at('metric_list'))}"
            )
        _check_one_of(table, "metric_list: metric", metric.get("metric"), METRICS)
        if "aggregation" in metric:
            _check_one_of(table, "metric_list: aggregation", metric["aggregation"], AGGREGATIONS)
    for pipeline in _tables(table, "filter_list"):
        steps = pipeline.get("filter")
        if not isinstance(pipeline.get("name"), str) or not isinstance(steps, list) or not steps:
            raise HarnessError(f"{table.at('filter_list')}: a filter needs a name and a list of steps, filter")
        for step in steps:
            function = step.get("function") if isinstance(step, dict) else None
            _check_one_of(table, "filter_list: function", function, FILTERS)
    generation = table.values.get("generation_kwargs")
    _check_inner(table, "generation_kwargs", generation, GENERATION)
    for key, value in (generation or {}).items():
        texts = value if isinstance(value, list) else [value]
        fits = all(isinstance(text, str) for text in texts) if key == "until" else isinstance(value, int | float)
        if not fits:
            raise HarnessError(f"{table.at('generation_kwargs')}: generation_kwargs.{key} is {value!r:.60}")


def _check_fewshot(table: Table) -> None:
    config = table.values.get("fewshot_config")
    _check_inner(table, "fewshot_config", config, FEWSHOT_KEYS)
    if config:
        _check_one_of(table, "fewshot_config: sampler", config.get("sampler", "default"), SAMPLERS)
        samples = config.get("samples")
        if samples is not None and not (isinstance(samples, list) and all(isinstance(row, dict) for row in samples)):
            raise HarnessError(f"{table.at('fewshot_config')}: fewshot_config.samples is no list of tables")


def _check_one_of(table: Table, what: str, value: Any, known: Collection[str]) -> None:
    if value not in known:
        hint = near_miss(value, known) if isinstance(value, str) else f", expected one of {', '.join(known)}"
        raise HarnessError(f"{table.at(what.partition(':')[0])}: {what} is {value!r:.60}{hint}")


def _check_inner(table: Table, key: str, value: Any, known: Collection[str]) -> None:
    if value is not None and not isinstance(value, dict):
        raise HarnessError(f"{table.at(key)}: {key} is {value!r:.60}, expected a table")
    for inner in value or {}:
        if inner not in known:
            raise HarnessError(f"{table.at(key)}: {key} has no '{inner!s:.60}'{near_miss(str(inner), known)}")


def _tables(table: Table, key: str) -> list[dict[str, Any]]:
    value = table.values.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
        raise HarnessError(f"{table.at(key)}: {key} is {value!r:.60}, expected a list of tables")
    return value


def _data_files(table: Table, root: Path, *, trusted: bool) -> Files:
    """Return the files of a task whose rows lie in files; of one whose rows are the hub's there are none."""
    kind, options = table.values.get("dataset_path"), table.values.get("dataset_kwargs") or {}
    place = table.at("dataset_kwargs")
    if kind not in FILE_KINDS:
        if not trusted:
            _check_hub(table, kind, options)
        return {}
    if not trusted:
        _check_inner(table, "dataset_kwargs", table.values.get("dataset_kwargs"), FILE_OPTIONS)
    given = options.get("data_files")
    by_split = given if isinstance(given, dict) else {"train": given}
    if not given:
        raise HarnessError(f"{place}: dataset_path = {kind} needs dataset_kwargs with data_files, by split")
    return {
        str(split): tuple(_data_file(place, name, root, trusted=trusted) for name in _listed(names))
        for split, names in by_split.items()
    }


def _listed(names: Any) -> list[Any]:
    return names if isinstance(names, list) else [names]


def _data_file(place: Place, name: Any, root: Path, *, trusted: bool) -> Path:
    if not isinstance(name, str) or not name or NOT_A_PATH.search(name):
        raise HarnessError(f"{place}: data_files: {name!r:.60} is no path of a file beside the task's YAML")
    file = place.file.parent / name
    check_inside(file, None if trusted else root, f"{place}: data_files: {name}")
    if not file.is_file():
        raise HarnessError(f"{place}: data_files: there is no file {name} in {place.file.parent}")
    return file


def _check_hub(table: Table, name: Any, options: Mapping[str, Any]) -> None:
    place = table.at("dataset_path")
    exists: Callable[[str], bool] = lambda text: Path(text).exists()  # noqa: E731
    if not isinstance(name, str) or not HUB_NAME.match(name) or name.endswith(".py") or exists(name):
        raise HarnessError(
            f"{place}: dataset_path is {name!r:.60}, expected one of {', '.join(FILE_KINDS)} with data_files, or the "
            "name of a data set on the hub"
        )
    if "/" not in name and name not in FILE_KINDS:
        raise HarnessError(f"{place}: dataset_path = '{name:.60}': write a data set of the hub as OWNER/NAME")
    _check_inner(table, "dataset_kwargs", options or None, HUB_OPTIONS)
