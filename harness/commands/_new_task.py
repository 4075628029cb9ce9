"""What ``harness new task`` writes: a task of lm-eval's kind with rows of its own, which nothing but data makes up."""

from __future__ import annotations

import json

YAML = """# A task of lm-eval's kind with rows of its own. It holds no code (!function is refused): anybody may run it.
# In a suite: [tasks] include_path = "NAME", and in [evaluation] tasks = ["NAME"] with rows = "own".
task: NAME
dataset_path: json                       # or csv, parquet
dataset_kwargs:
  data_files:
    test: NAME.jsonl                     # relative to this file
test_split: test                         # the rows that are scored
# fewshot_split: train                   # the rows that shots are drawn from, another one of data_files
output_type: multiple_choice             # or generate_until, with exact_match
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"             # each is scored by its log-likelihood behind the text
doc_to_target: answer                    # the right one's position, from 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm                     # log-likelihood by the choice's length
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1                             # raise it with every change: scores of two versions are not compared
"""
ROWS = (
    ("How many legs does a spider have?", ("six", "eight", "ten"), 1),
    ("Which of these is frozen water?", ("ice", "steam", "sand"), 0),
    ("What do bees make?", ("milk", "silk", "honey"), 2),
    ("Which month comes after March?", ("April", "June", "February"), 0),
    ("What is three times four?", ("seven", "twelve", "thirty-four"), 1),
    ("Where do fish live?", ("in trees", "in the desert", "in water"), 2),
    ("Which of these can be read?", ("a book", "a spoon", "a cloud"), 0),
    ("What is the opposite of hot?", ("warm", "cold", "dry"), 1),
)


def rows() -> str:
    """Return the rows as JSON Lines."""
    found = [{"question": question, "choices": choices, "answer": answer} for question, choices, answer in ROWS]
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in found)
