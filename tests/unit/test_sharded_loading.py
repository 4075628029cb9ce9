"""Several processes load a model that none of them holds: files are mapped, values are those of one process."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.calibration.tiny import MODEL, SHAPE
from harness.engine.loading import SHARED, RandomWeights, load_together
from harness.engine.ranks import Ranks
from harness.errors import HarnessError
from harness.tensors import mapped
from harness.tensors.decoder import checksum
from harness.tensors.loading import build_model, load_model
from harness.tensors.mapped import build_from_files, build_in_files, convert, is_mapped_as
from harness.tensors.seeding import seeded_globally
from tests.ranks import on_ranks

CPU = torch.device("cpu")
SEED = 3
WIDE = MODEL.model_copy(
    update={
        "shape": SHAPE.model_copy(
            update={"hidden_size": 512, "intermediate_size": 1536, "head_dim": 128, "vocab_size": 8192, "num_layers": 4}
        )
    }
)
"""Of 87 MB in fp32."""
FRACTION = 0.2


def own_bytes() -> int:
    """Return the memory in use by this process that no file has."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def taken(ranks: Ranks, folder: Path | None, work: Path) -> tuple[float, str, list[Any]]:
    """Return what share of a model a process takes for itself, the model's checksum and its buffers."""
    torch.set_num_threads(1)
    build_model(MODEL, "fp32", CPU)  # imports what a model needs
    before = own_bytes()
    if folder is not None:
        model = load_together(folder, "fp32", ranks, work)
    else:
        model = RandomWeights(WIDE, "fp32", CPU, SEED).build_together(ranks, work)
    share = (own_bytes() - before) / sum(p.nbytes for p in model.parameters())
    return share, checksum(model), [(name, b.dtype, b.tolist()) for name, b in model.named_buffers()]


def whole() -> Any:
    with seeded_globally(SEED, "weights"):
        return build_model(WIDE, "fp32", CPU)


@pytest.mark.parametrize("case", ["files of the dtype", "files of another dtype", "random values"])
def test_no_process_holds_a_copy_of_the_weights(case: str, tmp_path: Path) -> None:
    model, folder = whole(), None
    if case != "random values":
        folder = tmp_path / "model"
        model.to(torch.float16 if "another" in case else torch.float32).save_pretrained(folder)
        model = load_model(folder, "fp32", CPU)
    expected = checksum(model), [(name, b.dtype, b.tolist()) for name, b in model.named_buffers()]
    for share, *found in on_ranks(2, taken, folder, tmp_path / "work"):
        assert tuple(found) == expected
        assert share < FRACTION
    assert not (tmp_path / "work" / SHARED).exists()


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    ("architecture", "tied", "dtype"),
    [
        ("LlamaForCausalLM", False, "fp32"),
        ("LlamaForCausalLM", True, "bf16"),
        ("MistralForCausalLM", False, "bf16"),
        ("Qwen2ForCausalLM", True, "fp32"),
    ],
)
def test_values_drawn_into_files_are_those_drawn_in_memory(
    architecture: str, tied: bool, dtype: str, apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "LEAST_BYTES", 1024)
    monkeypatch.setattr(mapped, "_is_apart", lambda device: apart)
    shape = SHAPE.model_copy(update={"tied_head": tied})
    spec = MODEL.model_copy(update={"architecture": architecture, "shape": shape})
    with seeded_globally(SEED, "weights"):
        expected = build_model(spec, dtype, CPU)
    with seeded_globally(SEED, "weights"):
        made = build_in_files(spec, dtype, CPU, tmp_path)
    read = build_from_files(spec, dtype, tmp_path)
    assert len(list(tmp_path.glob("*.bin"))) >= 28 and checksum(made) == checksum(read) == checksum(expected)
    ids = torch.arange(16).reshape(2, 8)
    assert torch.equal(read(input_ids=ids).logits, expected(input_ids=ids).logits)
    assert [name for name, _ in read.named_parameters()] == [name for name, _ in expected.named_parameters()]


def test_a_copy_in_another_dtype_is_rounded_as_transformers_rounds(tiny_llama: Path, tmp_path: Path) -> None:
    load_model(tiny_llama, "fp32", CPU).half().save_pretrained(tmp_path / "half", max_shard_size=100_000)  # type: ignore[operator]
    assert not is_mapped_as(tmp_path / "half", "bf16") and is_mapped_as(tiny_llama, "fp32")
    convert(tmp_path / "half", "bf16", tmp_path / "made")
    assert is_mapped_as(tmp_path / "made", "bf16")
    files = sorted((tmp_path / "made").glob("*.safetensors"))
    assert len(files) > 1 and {t.dtype for file in files for t in load_file(file).values()} == {torch.bfloat16}
    made, expected = (load_model(tmp_path / name, "bf16", CPU) for name in ("made", "half"))
    assert checksum(made) == checksum(expected)


def refused(ranks: Ranks, folder: Path, work: Path) -> str:
    try:
        load_together(folder, "bf16", ranks, work)
    except HarnessError as error:
        return str(error)
    return ""


def no_room(ranks: Ranks, work: Path) -> str:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    mapped.os.posix_fallocate = full  # type: ignore[attr-defined]
    try:
        RandomWeights(WIDE, "fp32", CPU, SEED).build_together(ranks, work)
    except HarnessError as error:
        return str(error)
    return ""


def test_what_cannot_be_loaded_is_one_sentence_in_every_process(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).write_bytes((tiny_llama / name).read_bytes()[:5000])
    one, other = on_ranks(2, refused, tmp_path / "model", tmp_path / "work")
    assert one == other and "cannot be loaded" in one
    one, other = on_ranks(2, no_room, tmp_path / "work")
    assert one == other and "No space left on device; make room" in one
    assert not (tmp_path / "work" / SHARED).exists()
