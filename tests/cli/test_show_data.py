"""``harness show-data`` through the real command: the examples of a run, marked, in the order of its seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import RANDOM, SUITE, command

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prepared")]


def test_examples_are_printed_marked_and_as_json(tmp_path: Path, tiny_llama: Path) -> None:
    (tmp_path / "tiny.toml").write_text(SUITE)
    chosen = ("show-data", "--suite", "tiny.toml", "--model", f"smollm2-135m={tiny_llama}", "--offline")
    plain = command(*chosen, "--n", "2", cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    assert "packaged-commonsense for smollm2-135m, full, seed 1: prompt plain, loss on answer" in plain.stdout
    assert plain.stdout.count("--- example ") == 2
    assert plain.stdout.count("truncated by") == 2  # the tiny model's tokens are bytes
    assert plain.stdout.count("⟦the correct answer is ") == 2
    found = json.loads(command(*chosen, "--n", "2", "--json", "--label", "lora", cwd=tmp_path).stdout)
    assert found["label"] == "lora"
    for example in found["examples"]:
        assert len(example["ids"]) == len(example["trained"]) == 64
        assert sum(piece["num_tokens"] for piece in example["pieces"] if piece["trained"]) == sum(example["trained"])
    other = command(*chosen, "--n", "2", "--seed", "2", cwd=tmp_path)
    assert other.stdout.split("---", 1)[1] != plain.stdout.split("---", 1)[1]
    packed = command(*chosen, "--n", "1", "--set", "packing=true", "--set", "loss_on=all", cwd=tmp_path)
    assert "packed: parts of" in packed.stdout


def test_what_has_no_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RANDOM)
    drawn = command("show-data", "--suite", "tiny.toml", "--offline", cwd=tmp_path)
    assert (drawn.returncode, "trains on random tokens" in drawn.stderr) == (2, True)
    base = command("show-data", "--suite", "quickstart", "--label", "base", "--offline", cwd=tmp_path)
    assert (base.returncode, "nothing of what is chosen trains" in base.stderr) == (2, True)
