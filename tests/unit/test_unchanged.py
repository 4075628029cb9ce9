"""A run whose weights or rows were replaced after it was laid out is not done under the old checksum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.models import BaseModelSpec
from harness.engine.unchanged import check_unchanged
from harness.errors import HarnessError
from harness.preparing.assets import resolve_dataset, resolve_model
from harness.task import RunTask
from tests.records import make_spec


@pytest.fixture
def task(tmp_path: Path) -> Any:
    folder, rows = tmp_path / "weights", tmp_path / "rows.jsonl"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (folder / name).write_text("{}")
    rows.write_text('{"text": "x"}\n')
    model = BaseModelSpec(name="tiny", architecture="LlamaForCausalLM", folder=folder)
    data = DatasetSpec(name="rows", layout="text", file=rows)
    return RunTask(
        spec=make_spec(method="base", train=None),
        uuid="u",
        model=resolve_model(model),
        model_folder=folder,
        rows_folder=None,
        datasets={"rows": resolve_dataset(data)},
        cache_folder=tmp_path,
        work_folder=tmp_path / "work",
        run_id="r",
    )


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("weights/model.safetensors", "weights: the weights have changed since the run was laid out"),
        ("weights/config.json", "weights: the weights have changed"),
        ("rows.jsonl", "data set 'rows': .*rows.jsonl has changed since the run was laid out"),
    ],
)
def test_what_was_replaced_meanwhile_is_refused(task: Any, tmp_path: Path, file: str, said: str) -> None:
    check_unchanged(task)
    (tmp_path / file).write_text('{"text": "y"}\n')
    with pytest.raises(HarnessError, match=said):
        check_unchanged(task)


def test_a_readme_that_was_edited_meanwhile_is_of_no_account(task: Any, tmp_path: Path) -> None:
    (tmp_path / "weights" / "README.md").write_text("more")
    check_unchanged(task)
