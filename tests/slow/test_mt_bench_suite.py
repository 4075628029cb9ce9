"""The whole of MT-Bench on the embedded model: training, answers in the run, a judge, a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.assets.cache import is_complete
from harness.assets.mt_bench import packaged_place, read_answers
from harness.catalogue.models import find_model, load_models
from harness.preparing.assets import converted_model_place
from harness.store import Store
from tests.cli.conftest import command
from tests.conftest import needed
from tests.judge import Act, served

pytestmark = pytest.mark.slow


def test_the_small_suite_runs_from_training_to_report(tmp_path: Path) -> None:
    needed(packaged_place())
    assert is_complete(converted_model_place(find_model("smollm2-135m", load_models())))
    where = ("--suite", "mt-bench-small", "--results", "records")
    chosen = ("--label", "base", "--label", "lora", "--max-steps", "2", "--offline")
    done = command("run", *where, *chosen, cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stderr
    records = Store(tmp_path / "records").read("mt-bench-small").records
    for record in records:
        assert record.spec.conversation == "chatml"
        assert record.mt_bench is not None
        assert (record.mt_bench.template, record.mt_bench.template_origin) == ("chatml", "harness")
        assert record.phase("answer") is not None
        answers = read_answers(tmp_path / "records" / record.mt_bench.file)
        assert list(answers) == [81, 91, 101, 111, 121, 131, 141, 151]
        assert any(text for both in answers.values() for text in both)
    with served(lambda number, body: Act(f"Rating: [[{1 + number % 10}]]")) as judge:
        done = command("judge", *where, "--judge", judge.url, "--judge-model", "gpt-4", "--offline", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(judge.requests) == 32
    done = command("report", *where, "--out", "report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "judged by gpt-4 (gpt-4-0613), prompts fd283293406d" in " ".join(done.stdout.split())
    assert "mean of 7 categories" in (tmp_path / "report" / "report.md").read_text()


def test_ours_for_chatml_is_the_embedded_models_own_template_without_its_system_message() -> None:
    from harness.conversation import find_template
    from harness.tensors.loading import load_tokenizer

    place = converted_model_place(find_model("smollm2-135m", load_models()))
    tokenizer = load_tokenizer(needed(place))
    turns = ["Hi", "Hello", "More?"]
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith(find_template("chatml").render(turns))
    assert text.removesuffix(find_template("chatml").render(turns)).startswith("<|im_start|>system\n")
