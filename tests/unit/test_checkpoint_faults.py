"""Checkpoints that were damaged, are of another run, or could not be written: said, and the one before is used."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.engine.checkpoint import Checkpoints
from harness.engine.training import TrainingLoop
from harness.errors import HarnessError
from tests.unit.test_training import build

FILES = ("weights.safetensors", "optimizer.safetensors", "state.json")


@pytest.fixture(scope="module")
def written(tiny_llama: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the checkpoints of steps 4 and 5."""
    folder = tmp_path_factory.mktemp("checkpoints") / "run-environment"
    loop, _, data = build("full", tiny_llama, tokenizer, num_steps=6)
    loop.run(data.step_batches(), lambda done, loss: None, Checkpoints(folder, loop).save, 1)
    assert sorted(path.name for path in folder.iterdir()) == ["step-4", "step-5"]
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """Return a copy of it."""
    return Path(shutil.copytree(written, tmp_path / written.name))


@pytest.fixture
def fresh(tiny_llama: Path, tokenizer: Any) -> TrainingLoop:
    loop: TrainingLoop = build("full", tiny_llama, tokenizer, num_steps=6)[0]
    return loop


def flip(file: Path, place: float) -> None:
    """Flip one bit at a share of a file's length."""
    data = bytearray(file.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x10
    file.write_bytes(data)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_gives_way_to_the_checkpoint_before(
    name: str, place: float, folder: Path, fresh: TrainingLoop
) -> None:
    flip(folder / "step-5" / name, place)
    checkpoints = Checkpoints(folder, fresh)
    assert checkpoints.restore() == fresh.step == 4
    (note,) = checkpoints.notes
    assert note.startswith("the checkpoint of step 5 was passed over: ")
    assert name in note


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["cut", "empty", "gone"])
def test_no_whole_checkpoint_is_a_fresh_start(name: str, how: str, folder: Path, fresh: TrainingLoop) -> None:
    for step in ("step-4", "step-5"):
        file = folder / step / name
        data = file.read_bytes()
        file.unlink()
        if how != "gone":
            file.write_bytes(data[: len(data) // 2] if how == "cut" else b"")
    checkpoints = Checkpoints(folder, fresh)
    assert checkpoints.restore() is None
    assert fresh.step == 0
    assert len(checkpoints.notes) == 2


def test_checkpoints_of_another_run_or_environment_are_refused(folder: Path, fresh: TrainingLoop) -> None:
    other = folder.with_name("run-another")
    shutil.copytree(folder, other)
    checkpoints = Checkpoints(other, fresh)
    assert checkpoints.restore() is None
    assert "it is of run run-environment, not of run-another" in checkpoints.notes[0]


@pytest.mark.parametrize("at", ["engine.checkpoint.save_file", "files.sync"])
def test_a_full_disk_is_one_sentence_and_leaves_the_checkpoints_before(
    at: str, folder: Path, fresh: TrainingLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(folder, fresh)
    assert checkpoints.restore() == 5

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"harness.{at}", full)
    (folder / ".step-3.01234567.part").mkdir()
    with pytest.raises(HarnessError, match=r"checkpoint of step 5 cannot be written: No space left on device"):
        checkpoints.save()
    monkeypatch.undo()
    assert sorted(path.name for path in folder.iterdir()) in (["step-4", "step-5"], ["step-4"])
    assert Checkpoints(folder, fresh).restore() in (4, 5)
