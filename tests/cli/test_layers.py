"""``harness layers``: scores of blocks and how often each is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import SUITE, command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(SUITE)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "smollm"], "there is no model 'smollm'; did you mean 'smollm2-135m'?"),
        (["--model", "smollm2-135m", "--label", "lora"], "trains no sample of blocks"),
        (["--model", "smollm2-135m", "--label", "owlor"], "there is no label 'owlor'; did you mean 'owlore'?"),
        (["--model", "smollm2-135m", "--out", "plot.txt"], "expected a file that ends in .png or .svg or .pdf"),
        (["--model", "smollm2-135m", "--out", "none/plot.png"], "there is no folder 'none'"),
        (["--model", "smollm2-135m", "--label", "lisa"], "so it has no tau: give --tau"),
    ],
)
def test_wrong_use_is_one_sentence(folder: Path, arguments: list[str], said: str) -> None:
    done = command("layers", "--suite", "tiny.toml", *arguments, cwd=folder)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("prepared")
def test_probabilities_follow_from_scores_and_sum_to_what_is_drawn(folder: Path, tiny_llama: Path) -> None:
    model = f"smollm2-135m={tiny_llama}"
    arguments = ("layers", "--suite", "tiny.toml", "--model", model, "--offline")
    done = command(*arguments, "--json", "--out", "plot.svg", cwd=folder)
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    blocks = table["blocks"]
    assert [row["block"] for row in blocks] == [0, 1, 2, 3]
    total = sum(row["score"] for row in blocks)
    assert total > 0
    for row in blocks:
        assert row["sampling_probability"] == pytest.approx(row["score"] / total)
    assert sum(row["sampling_probability"] for row in blocks) == pytest.approx(1.0)
    assert table["active_layers"] == 2
    assert sum(row["inclusion_probability"] for row in blocks) == pytest.approx(2.0)
    assert "<svg" in (folder / "plot.svg").read_text()
    beside = command(*arguments, "--beside", "alpha_hill", "--beside", "outlier", "--json", cwd=folder)
    told = json.loads(beside.stdout)
    assert told["blocks"] == blocks
    assert list(told["beside"]) == ["alpha_hill"], "the label's own score stands with the blocks"
    assert all(alpha > 1.0 for alpha in told["beside"]["alpha_hill"])
    (pair,) = told["rank_correlations"]
    assert pair["scores"] == ["outlier", "alpha_hill"]
    assert -1.0 <= pair["spearman"] <= 1.0
    shown = command(*arguments, "--beside", "alpha_hill", cwd=folder)
    assert "rank correlation (Spearman) of outlier ratio, % and alpha, Hill:" in shown.stdout
    assert f"{blocks[3]['sampling_probability']:.6f}" in shown.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("without_kept_scores")
def test_a_log_says_block_and_sample_and_what_is_loaded_whole(folder: Path, tmp_path: Path) -> None:
    from transformers import Olmo2Config, Olmo2ForCausalLM

    from tests.conftest import SHAPE, byte_tokenizer

    other = tmp_path / "olmo"
    Olmo2ForCausalLM(Olmo2Config(**SHAPE)).save_pretrained(other)
    byte_tokenizer().save_pretrained(other)
    arguments = ("layers", "--suite", "tiny.toml", "--offline", "--json", "--model")
    done = command(*arguments, f"smollm2-135m={other}", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (
        "harness: warning: smollm2-135m is loaded whole for the scores of its blocks: no one has read whether the "
        "blocks of a 'olmo2' model can be run one by one"
    ) in done.stderr
    assert len(json.loads(done.stdout)["blocks"]) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("without_kept_scores")
def test_a_log_of_blocks_fits_in_80_columns(folder: Path, tiny_mistral: Path) -> None:
    model = f"smollm2-135m={tiny_mistral}"
    arguments = ("layers", "--suite", "tiny.toml", "--model", model, "--offline")
    done = command(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("scoring")]
    assert "scoring, block 1 of 4, sample 1 of 2: 0 of 8" in lines
    assert len(lines) < 8, "further lines only once in a while"
    assert all(len(line) <= 80 for line in lines)
    assert "warning" not in done.stderr
