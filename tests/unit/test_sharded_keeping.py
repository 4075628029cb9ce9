"""What a run on several processes leaves: scores, items, answers and weights are those of one process, byte by byte."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.engine import gathered_weights
from harness.engine.loading import SHARED
from harness.engine.ranks import ALONE, Ranks
from harness.evaluation.scoring import read_items
from harness.record import Record
from harness.tensors.loading import load_model
from harness.tensors.tensor_files import TensorFile
from tests.executing import evaluated_task, executed
from tests.ranks import on_ranks

CPU = torch.device("cpu")
ADAPTERS = ("dora", "pissa", "olora", "ist")


def files(folder: Path) -> dict[str, Any]:
    """Return what the files of a folder hold; peft writes a set into JSON in any order."""
    found: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    if (adapter := found.get("adapter/adapter_config.json")) is not None:
        config = json.loads(adapter)
        found["adapter/adapter_config.json"] = config | {"target_modules": sorted(config["target_modules"])}
    return found


def answers(work: Path) -> list[Any]:
    return [json.loads(line)["choices"] for line in (work / "answers.jsonl").read_text().splitlines()]


def runs(labels: Sequence[str], number: int, model: Path, place: Path, **changes: Any) -> list[tuple[Record, Record]]:
    """Return the records of labels that one process ran, and several; what they left lies in ``place / label``."""
    tasks = {
        place / label: evaluated_task(
            label, model, place / label, keep_weights=True, gradient_accumulation_steps=number, **changes
        )
        for label in labels
    }
    ones = [executed(ALONE, {folder / "one": task.model_dump_json()})[0] for folder, task in tasks.items()]
    shared = {
        folder / "several": task.model_copy(update={"gpus_per_run": number}).model_dump_json()
        for folder, task in tasks.items()
    }
    several = on_ranks(number, executed, shared, timeout=400)[0]
    return [
        (Record.model_validate_json(one), Record.model_validate_json(other))
        for one, other in zip(ones, several, strict=True)
    ]


def check_equal(one: Record, several: Record, place: Path) -> None:
    assert (one.status, several.status, several.weights_error) == ("ok", "ok", None), several.log_tail
    assert several.train is not None and one.train is not None and several.train.curve.loss == one.train.curve.loss
    assert several.scores == one.scores and {score.task for score in one.scores} == {"capitals", "writes", "texts"}
    assert several.scoring == one.scoring
    items = [read_items(place / name / "items.jsonl.zst") for name in ("one", "several")]
    assert items[0] == items[1] and len(items[0]) == 6
    assert answers(place / "one") == answers(place / "several")
    kept = [files(place / name / "weights") for name in ("one", "several")]
    assert kept[0] == kept[1] and {"model.safetensors", "config.json", "generation_config.json"} <= set(kept[0])
    left = [path.name for path in (place / "several").rglob("*")]
    assert not [name for name in left if name.endswith((".bin", ".pt", ".pkl", ".distcp")) or name == SHARED]


def test_two_processes_leave_what_one_does(tiny_llama: Path, tmp_path: Path) -> None:
    labels = ("full", "lora")
    for label, (one, several) in zip(labels, runs(labels, 2, tiny_llama, tmp_path), strict=True):
        check_equal(one, several, tmp_path / label)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_two_processes_leave_the_adapters_that_one_does(dtype: str, tiny_llama: Path, tmp_path: Path) -> None:
    for label, (one, several) in zip(ADAPTERS, runs(ADAPTERS, 2, tiny_llama, tmp_path, dtype=dtype), strict=True):
        check_equal(one, several, tmp_path / label)


def keep(ranks: Ranks, folder: Path, place: Path, most_bytes: int) -> list[str] | str:
    from harness.calibration.tiny import MODEL
    from harness.engine.keeping import _save
    from harness.tensors.decoder import find_decoder
    from harness.tensors.sharded import shard

    gathered_weights.MOST_BYTES = most_bytes
    model = load_model(folder, "fp32", CPU)
    if ranks.several:
        shard(model, find_decoder(model, MODEL), ranks.mesh)
    try:
        if ranks.first:
            place.mkdir()
        if most_bytes < 0 and ranks.first:
            write, taken = TensorFile.add, []

            def full(self: TensorFile, tensor: torch.Tensor) -> None:
                taken.append(tensor)
                if len(taken) == 3:
                    raise OSError(errno.ENOSPC, "No space left on device")
                write(self, tensor)

            TensorFile.add = full  # type: ignore[method-assign]
            gathered_weights.MOST_BYTES = 1 << 30
        _save(model, place, ranks)
    except OSError as error:
        return str(error)
    return sorted(file.name for file in place.iterdir()) if ranks.first else []


@pytest.mark.parametrize("tied", [False, True])
def test_large_weights_are_several_files_as_transformers_writes_them(
    tied: bool, tiny_llama: Path, tiny_llama_tied: Path, tmp_path: Path
) -> None:
    base = tiny_llama_tied if tied else tiny_llama
    load_model(base, "fp32", CPU).save_pretrained(tmp_path / "one", max_shard_size=100_000)  # type: ignore[operator]
    names = on_ranks(2, keep, base, tmp_path / "two", 100_000)[0]
    assert len([name for name in names if name.endswith(".safetensors")]) > 1
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_a_full_disk_is_one_error_in_every_process_and_hangs_none(tiny_llama: Path, tmp_path: Path) -> None:
    assert on_ranks(2, keep, tiny_llama, tmp_path / "two", -1) == ["[Errno 28] No space left on device"] * 2


def test_a_file_written_a_tensor_at_a_time_is_that_of_the_library(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {
        "b": torch.randn(3, 5),
        "é": torch.arange(4),
        "a": torch.randn(2, 2).bfloat16(),
        "c": torch.randn(7).half(),
        "d": torch.tensor(True),
        "e": torch.zeros(0, 4),
        "f": torch.randn(2).double(),
        "g": torch.ones(3, dtype=torch.int32),
        "h": torch.ones(3, dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    made = TensorFile(tmp_path / "ours", tensors)
    for name in made.names:
        made.add(tensors[name])
    made.close()
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert all(torch.equal(tensors[name], found) for name, found in load_file(tmp_path / "ours").items())
