"""``harness compare`` on files, folders and git revisions: exit codes, one sentence for wrong use, no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

from harness.cli import main
from harness.record import Record, Score
from harness.record_training import StepCurve, TrainResult
from harness.store import Store
from tests.records import ENVIRONMENT, make_record
from tests.unit.test_architecture import WITHOUT_TORCH

NEW = ENVIRONMENT.model_copy(update={"packages": {"torch": "2.14.0"}})
NOISE = (0.99, 1.01, 1.0, 0.995, 1.005)


def record(i: int, seconds: float, *, new: bool = False, status: str = "ok") -> Record:
    ones = (1.0,) * 4
    train = TrainResult(
        num_steps=4,
        curve=StepCurve(
            loss=ones,
            learning_rate=ones,
            grad_norm=ones,
            trained_tokens=(1,) * 4,
            tokens=(1,) * 4,
            seconds=ones,
            trainable_params=(1,) * 4,
            optimizer_state_bytes=(1,) * 4,
        ),
        block_activity=(),
        num_blocks=1,
        step_seconds_mean=seconds,
        step_seconds_median=seconds,
        num_timed_steps=1,
        data_seconds=0.0,
        trainable_params_mean=1.0,
        trainable_params_ever=1,
        total_params=1,
        peak_optimizer_state_bytes=1,
    )
    score = Score(
        task="piqa",
        metric="acc",
        value=0.5,
        stderr=0.1,
        n=4,
        higher_is_better=True,
        task_version="1",
        num_fewshot=0,
        headline=True,
    )
    uuid = f"{'new' if new else 'old'}-{i}"
    ok: dict[str, Any] = {"train": train, "scores": (score,), "items": f"items/{uuid}.jsonl.zst"}
    made = make_record(uuid=uuid, minute=i + 60 * new, status=status, **(ok if status == "ok" else {"reason": "a bug"}))
    if not new:
        return made
    return made.model_copy(update={"environment": NEW, "environment_id": NEW.environment_id})


def fill(folder: Path, records: list[Record]) -> None:
    for one in records:
        Store(folder).append(one)
        if one.items is not None:
            file = folder / one.items
            file.parent.mkdir(parents=True, exist_ok=True)
            lines = [
                json.dumps({"task": "piqa", "index": i, "doc_hash": str(i), "metrics": {"acc": float(i < 2)}})
                for i in range(4)
            ]
            file.write_bytes(zstandard.compress("\n".join(lines).encode()))


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fill(tmp_path / "old", [record(i, x) for i, x in enumerate(NOISE)])
    fill(tmp_path / "same", [record(i, 1.01 * x, new=True) for i, x in enumerate(NOISE)])
    fill(tmp_path / "slow", [record(i, 1.08 * x, new=True) for i, x in enumerate(NOISE)])
    fill(tmp_path / "broken", [record(0, 1.0, new=True, status="failed")])
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jsonl").write_text("not a record\n")
    (tmp_path / "other.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    ("candidate", "code", "headline"),
    [
        ("same", 0, "3 same"),
        ("slow", 1, "1 worse, 2 same"),
        ("broken", 1, "1 failed"),
        ("slow/tiny.jsonl", 1, "1 worse, 2 same"),
    ],
)
def test_the_exit_code_says_whether_something_is_worse(
    candidate: str, code: int, headline: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "old", candidate]) == code
    out = capsys.readouterr().out
    assert out.startswith(f"## harness compare: {headline}\n")
    assert "torch 2.13.0 -&gt; 2.14.0" in out or "torch 2.13.0 -> 2.14.0" in out


@pytest.mark.usefixtures("folders")
def test_json_has_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "old", "slow", "--format", "json", "--fail-on", "step_time:10%,piqa:1pt"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [(c["title"], c["verdict"], c["tolerance"]) for c in value["cells"]] == [
        ("step time", "same", "10%"),
        ("piqa acc", "same", "1pt"),
    ]
    assert value["cells"][0]["change"] == pytest.approx(0.08)
    assert value["cells"][1]["basis"] == "paired over 4 items"


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["old", "nowhere"], "'nowhere' is neither a file, nor a folder, nor a revision of a git repository here"),
        (["old", "empty"], "empty holds no record and no document of pytest-benchmark"),
        (["old", "text.jsonl"], "text.jsonl line 1: is not JSON"),
        (["old", "other.json"], "other.json: is no document of pytest-benchmark: it has no list 'benchmarks'"),
        (["old", "slow", "--fail-on", "speed:2%"], "there is no metric 'speed'"),
        (["old", "slow", "--fail-on", "peak_memory:3%"], "nothing in slow can be compared with old"),
    ],
)
def test_wrong_use_is_one_sentence_and_exits_with_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("level", ["0", "0.9", "x", "nan"])
def test_a_level_must_be_one(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", "a", "b", "--level", level])
    assert ended.value.code == 2
    assert f"'{level}' is not a number above 0, at most 0.5" in capsys.readouterr().err


def git(*arguments: str, cwd: Path) -> None:
    identity = {f"GIT_{who}_{what}": "a" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True, env={**os.environ, **identity})


def test_revisions_are_read_through_git_with_their_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    git("init", "-q", cwd=tmp_path)
    records = tmp_path / "results" / "records"
    fill(records, [record(i, x) for i, x in enumerate(NOISE)])
    git("add", "-A", cwd=tmp_path)
    git("commit", "-qm", "before", cwd=tmp_path)
    fill(records, [record(i, 1.08 * x, new=True) for i, x in enumerate(NOISE)])
    git("add", "-A", cwd=tmp_path)
    git("commit", "-qm", "after", cwd=tmp_path)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    for baseline in ("HEAD~1", "HEAD~1:results/records", "HEAD~1:results/records/tiny.jsonl"):
        assert main(["compare", baseline, "HEAD", "--format", "json"]) == 1
        value = json.loads(capsys.readouterr().out)
        assert value["baseline"].startswith(f"{baseline} (")
        assert [(c["title"], c["verdict"], c["basis"]) for c in value["cells"]] == [
            ("step time", "worse", "5 against 5 values"),
            ("optimizer state, peak", "same", "5 against 5 values; all alike: the tolerance alone decides"),
            ("piqa acc", "same", "paired over 4 items"),
        ]
    assert main(["compare", "HEAD:nowhere", "HEAD"]) == 2
    assert "has no records in nowhere; name REVISION:PATH" in capsys.readouterr().err


def test_a_place_without_git_says_so(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(folders / "empty"))
    assert main(["compare", "HEAD", "old"]) == 2
    assert "git is not installed, and no file or folder is called 'HEAD'" in capsys.readouterr().err


def test_it_needs_no_torch(folders: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "compare", "old", "slow"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "1 worse" in done.stdout
