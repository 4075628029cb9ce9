"""A hub model's revision becomes known while it is prepared: the run recorded then is the one that is skipped later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.catalogue.models import BaseModelSpec
from harness.cli import main
from harness.commands import run
from harness.commands._assets import Prepared
from harness.runs.executor import Runs, Tally
from harness.runs.local import LocalMachine
from harness.store import Store
from tests.cli.conftest import SUITE
from tests.records import make_record


def test_what_is_recorded_after_preparing_is_skipped_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = SUITE.replace('"base", "full", "lora", "galore", "lisa", "owlore"', '"base"')
    (tmp_path / "tiny.toml").write_text(suite[: suite.index("[settings.full]")])
    pinned: dict[str, str] = {}

    def resolve(spec: BaseModelSpec, folder: Path | None = None) -> BaseModelSpec:
        return spec.model_copy(update={"packaged": None, "hub_id": "someone/model", "revision": pinned.get("revision")})

    def prepare(selection: Any, **_: Any) -> Prepared:
        pinned["revision"] = "a" * 40
        return Prepared(dict.fromkeys(selection.models, tmp_path), tmp_path)

    def do(machine: LocalMachine, runs: Runs, _: Any) -> Tally:
        records = tuple(make_record(uuid=task.uuid, spec=task.spec) for task in runs.tasks)
        for record in records:
            runs.store.append(record.model_copy(update={"environment_id": machine.environment().environment_id}))
        return Tally(records)

    monkeypatch.setattr("harness.commands._selection.resolve_model", resolve)
    monkeypatch.setattr(run, "prepare", prepare)
    monkeypatch.setattr(LocalMachine, "run", do)

    def call() -> tuple[int, str]:
        words = ["run", "--suite", str(tmp_path / "tiny.toml"), "--results", str(tmp_path / "records")]
        return main(words), capsys.readouterr().out

    assert call()[0] == 0
    (record,) = Store(tmp_path / "records").read().records
    assert record.spec.model["revision"] == "a" * 40
    code, output = call()
    assert code == 0
    assert output.startswith("1 of 1 runs skipped: their outcome is recorded\nnext: harness report --suite ")
