"""A folder of tasks of one's own, as a user would write them: choices, generation, a group, a tag, an include."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHOICES = """
task: capitals
tag: atlas
include: _shared.yaml
dataset_path: json
dataset_kwargs:
  data_files:
    test: capitals.jsonl
    train: data/shots.jsonl
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "Question: What is the capital of {{country}}?\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
"""
SHARED = """
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 3.0
"""
RIVERS = """
task: rivers
tag: [atlas, waters]
include: _shared.yaml
dataset_path: csv
dataset_kwargs:
  data_files: {test: rivers.csv}
test_split: test
output_type: multiple_choice
doc_to_text: "The {{river}} flows into the"
doc_to_choice: [Atlantic, Pacific, Mediterranean]
doc_to_target: "{{sea}}"
"""
WRITES = """
task: writes
dataset_path: json
dataset_kwargs:
  data_files: {test: capitals.jsonl}
test_split: test
output_type: generate_until
doc_to_text: "Capital of {{country}}:"
doc_to_target: "{{choices[answer]}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 6
  do_sample: false
filter_list:
  - name: first-word
    filter:
      - function: regex
        regex_pattern: "(\\\\w+)"
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
"""
TEXTS = """
task: texts
dataset_path: json
dataset_kwargs:
  data_files: {test: capitals.jsonl}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "The capital of {{country}} is {{choices[answer]}}."
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
"""
GROUP = """
group: geography
task:
  - task: capitals
    num_fewshot: 1
  - group: waters_alone
    task: [rivers]
    aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]
aggregate_metric_list:
  - metric: acc
    aggregation: mean
    weight_by_size: true
metadata: {version: 2}
"""
ROWS = [
    ("France", ["Paris", "Rome", "Berlin"], 0),
    ("Italy", ["Paris", "Rome", "Berlin"], 1),
    ("Germany", ["Paris", "Rome", "Berlin"], 2),
    ("Spain", ["Madrid", "Lisbon"], 0),
    ("Norway", ["Madrid", "Lisbon", "Oslo"], 2),
]
SHOTS = [("Japan", ["Tokyo", "Kyoto"], 0), ("Peru", ["Quito", "Lima"], 1), ("Chile", ["Lima", "Santiago"], 1)]


def lines(rows: list[Any]) -> str:
    """Return rows as JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder: Path, **files: str) -> Path:
    """Write a folder of tasks, ``name__yaml`` standing for ``name.yaml``; what is given goes before the usual."""
    asked = [{"country": country, "choices": choices, "answer": answer} for country, choices, answer in ROWS]
    shown = [{"country": country, "choices": choices, "answer": answer} for country, choices, answer in SHOTS]
    usual = {
        "capitals.yaml": CHOICES,
        "_shared.yaml": SHARED,
        "more/rivers.yaml": RIVERS.replace("_shared", "../_shared"),
        "writes.yaml": WRITES,
        "texts.yaml": TEXTS,
        "geography.yaml": GROUP,
        "capitals.jsonl": lines(asked),
        "data/shots.jsonl": lines(shown),
        "more/rivers.csv": "river,sea\nRhône,Mediterranean\nLoire,Atlantic\nAmur,Pacific\nEbro,Mediterranean\n",
    }
    for name, text in (usual | {name.replace("__", "."): text for name, text in files.items()}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder
