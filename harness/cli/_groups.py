"""Under which heading of a command's help an option stands, by what it is for; one that is not named stands first."""

from __future__ import annotations

import argparse

GROUPS: dict[str, tuple[str, ...]] = {
    "selection": (
        *("suite", "all", "model", "label", "seed", "data", "include_path", "trust_tasks", "catalogue", "benchmark"),
        *("limit", "max_steps", "metric"),
    ),
    "settings": ("overrides", "batch_size", "seq_len", "dtype", "checkpointing", "tau"),
    "which runs": ("retry", "any_environment", "repeat", "dry_run", "run", "again", "part", "smoke"),
    "limits": ("checkpoint_every", "timeout", "budget_seconds", "max_failures"),
    "where runs take place": (
        *("gpus_per_run", "devices", "busy", "executor", "ray_address", "cpus_per_run", "slurm"),
    ),
    "live logs": ("log",),
    "the device": ("device", "device_profile", "device_memory", "mfu", "gpus", "horizon"),
    "the judge": (
        *("judge", "judge_model", "key_variable", "references", "repeats", "max_tokens", "max_tokens_field"),
        *("temperature", "verdict", "requests_per_minute", "concurrency", "max_retries"),
    ),
    "a bundle for a machine without a network": ("bundle", "python", "platform", "without", "extra", "part_size"),
    "files": ("results", "out", "keep_weights", "offline", "wheel"),
    "what counts as worse": ("fail_on", "level"),
    "what is printed": ("beside", "json", "format", "write", "plot", "n"),
}
"""Attributes of parsed arguments by heading, in the order of the help."""


def group_options(command: argparse.ArgumentParser) -> None:
    """Put a command's options under their headings; what it takes without an option stays where it is."""
    options = command._optionals
    for title, names in GROUPS.items():
        found = [action for action in options._group_actions if action.dest in names]
        if found:
            group = command.add_argument_group(title)
            group._group_actions += sorted(found, key=lambda action: names.index(action.dest))
            options._group_actions = [action for action in options._group_actions if action not in found]
