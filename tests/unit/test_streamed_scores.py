"""Scores of blocks that are read one at a time: the same numbers as of the whole model, with one block in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.catalogue.models import BaseModelSpec
from harness.engine import streamed_scores
from harness.engine.block_scores import block_scores, cached_block_scores
from harness.engine.hidden_states import HiddenStates
from harness.engine.streamed_scores import checkpoint_scorer, streamed_block_scores
from harness.errors import HarnessError
from harness.method import BlockScoreRequest
from harness.settings import CalibrationSettings
from harness.tensors.decoder import find_decoder
from harness.tensors.loading import load_model
from harness.tensors.streamed import CannotStream, stream_model
from tests.conftest import SHAPE

HOST = torch.device("cpu")
OUTLIER = BlockScoreRequest("outlier", 3.0)
REQUESTS = (OUTLIER, BlockScoreRequest("weight_norm"), BlockScoreRequest("alpha_hill"))
SAMPLES = [torch.arange(first, first + 33)[None] for first in (0, 60, 120)]
LONGER_ROTARY = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "tied llama": ("Llama", {"tie_word_embeddings": True}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "rope_parameters": LONGER_ROTARY}),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "gemma": ("Gemma", {"head_dim": 8}),
    "gemma2": ("Gemma2", {"head_dim": 8, "sliding_window": 8}),
    "phi3": ("Phi3", {}),
}


def entry(folder: Path, kind: str = "Llama") -> BaseModelSpec:
    return BaseModelSpec(name="t", architecture=f"{kind}ForCausalLM", folder=folder)


def new_model(kind: str, settings: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """Return a random model none of whose parameters are zeros or ones alone."""
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**SHAPE, **settings))
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(dtype)


def saved(folder: Path, kind: str, settings: dict[str, Any], dtype: torch.dtype = torch.float32) -> Path:
    new_model(kind, settings, dtype).save_pretrained(folder, max_shard_size="40KB")
    return folder


def whole_scores(folder: Path, dtype: str, kind: str = "Llama") -> list[list[float]]:
    model = load_model(folder, dtype, HOST)
    decoder = find_decoder(model, entry(folder, kind))
    return [block_scores(request, model, decoder, SAMPLES) for request in REQUESTS]


def streamed(folder: Path, dtype: str, kind: str = "Llama") -> list[list[float]]:
    """Return scores of a model that must not be loaded whole."""
    model = stream_model(folder, dtype, HOST, entry(folder, kind))
    return [streamed_block_scores(request, model, SAMPLES, folder / "scratch") for request in REQUESTS]


@pytest.mark.parametrize(
    ("name", "stored"),
    [("llama", torch.float32), ("llama", torch.float16), *((name, torch.bfloat16) for name in MODELS)],
)
def test_scores_are_the_whole_models_to_the_last_bit(name: str, stored: torch.dtype, tmp_path: Path) -> None:
    kind, settings = MODELS[name]
    folder = saved(tmp_path / "model", kind, settings, stored)
    assert len(list(folder.glob("*.safetensors"))) > 1
    for dtype in ("fp32", "bf16"):
        scores = streamed(folder, dtype, kind)
        assert scores == whole_scores(folder, dtype, kind)
        assert len(set(scores[0])) > 1


@pytest.mark.parametrize("most_bytes", [0, 5000])
def test_hidden_states_that_lie_in_a_file_move_no_score(
    most_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "model", "Llama", {})
    expected = streamed(folder, "bf16")
    assert 0 < 5000 - 33 * SHAPE["hidden_size"] * 2 < 2 * 33 * SHAPE["hidden_size"] * 2, "some of the samples fit"
    monkeypatch.setattr(streamed_scores, "HiddenStates", partial(HiddenStates, most_bytes=most_bytes))
    assert streamed(folder, "bf16") == expected
    assert list((folder / "scratch").iterdir()) == [], "the file has no name"


def test_hidden_states_come_back_as_they_were(tmp_path: Path) -> None:
    first = [torch.randn(1, tokens, 8).to(dtype) for tokens, dtype in ((3, torch.bfloat16), (5, torch.float32))]
    with HiddenStates(tmp_path / "new", most_bytes=0) as hidden:
        for states in (first, [-one for one in first], [2 * one for one in first]):
            for index, one in enumerate(states):
                hidden.put(index, one)
            for index in (1, 0):
                found = hidden.get(index, HOST)
                assert found.dtype == states[index].dtype
                assert torch.equal(found, states[index])


def test_a_disk_that_is_full_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with HiddenStates(tmp_path / "file", most_bytes=0) as hidden, pytest.raises(HarnessError, match="cannot be kept"):
        hidden.put(0, torch.zeros(1, 2, 3))


def test_no_more_than_one_block_is_there(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "Llama", {})
    model = stream_model(folder, "fp32", HOST, entry(folder))
    parts: dict[str, nn.Module] = dict(zip(model.decoder.block_names, model.decoder.blocks, strict=True))
    parts |= {role: getattr(model.decoder, role) for role in ("embedding", "final_norm", "head")}
    seen: list[set[str]] = []

    def look(what: str, done: int, total: int | None) -> None:
        seen.append({name for name, part in parts.items() if any(not p.is_meta for p in part.parameters())})

    streamed_block_scores(OUTLIER, model, SAMPLES, tmp_path, look)
    places = model.decoder.block_names
    assert seen == [{places[0], "embedding"}] * 3 + [{place} for place in places[1:] for _ in SAMPLES]
    assert all(parameter.is_meta for parameter in model.model.parameters())
    assert not any("forward" in vars(module) for module in model.model.modules())
    seen.clear()
    held: list[int] = []
    filled = model.filled

    def watched(module: nn.Module) -> Any:
        held.append(sum(not p.is_meta for p in model.model.parameters()))
        return filled(module)

    model.filled = watched  # type: ignore[method-assign]
    streamed_block_scores(BlockScoreRequest("weight_norm"), model, [], tmp_path, look)
    assert held == [0] * 28, "each of the matrices alone"


def test_progress_tells_block_and_sample_or_matrix(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "Llama", {})
    said: list[tuple[str, int, int | None]] = []
    model = stream_model(folder, "fp32", HOST, entry(folder))
    streamed_block_scores(OUTLIER, model, SAMPLES, tmp_path, lambda *word: said.append(word))
    assert said[0] == ("scoring, block 1 of 4, sample 1 of 3", 0, 12)
    assert said[-1] == ("scoring, block 4 of 4, sample 3 of 3", 11, 12)
    assert [done for _, done, _ in said] == list(range(12))
    said.clear()
    streamed_block_scores(BlockScoreRequest("weight_norm"), model, [], tmp_path, lambda *word: said.append(word))
    assert said[9] == ("scoring, block 2 of 4, matrix 3 of 7", 9, 28)
    said.clear()
    whole = load_model(folder, "fp32", HOST)
    block_scores(OUTLIER, whole, find_decoder(whole, entry(folder)), SAMPLES, lambda *word: said.append(word))
    assert said == [("scoring blocks, sample", index, 3) for index in range(3)]


def test_a_tied_model_that_stores_its_head_alone_is_streamed(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = new_model("Llama", {"tie_word_embeddings": True})
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert streamed(tmp_path, "bf16") == whole_scores(tmp_path, "bf16")


def test_a_tied_model_that_was_saved_without_its_head_is_streamed(tmp_path: Path) -> None:
    new_model("Qwen2", {"tie_word_embeddings": True}).model.save_pretrained(tmp_path)
    assert streamed(tmp_path, "fp32", "Qwen2") == whole_scores(tmp_path, "fp32", "Qwen2")


def told_by(folder: Path, kind: str) -> tuple[list[list[float]], list[str]]:
    told: list[str] = []
    score = checkpoint_scorer(folder, "fp32", HOST, entry(folder, kind), scratch=folder / "scratch", tell=told.append)
    return [score(request, SAMPLES) for request in REQUESTS], told


def test_a_model_that_is_streamed_is_not_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "model", "Llama", {})
    expected = whole_scores(folder, "fp32")
    monkeypatch.setattr(streamed_scores, "load_model", None)
    assert told_by(folder, "Llama") == (expected, [])


def test_a_head_that_is_stored_beside_its_embedding_has_the_model_loaded_whole(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    new_model("Llama", {"tie_word_embeddings": True}).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    scores, told = told_by(tmp_path, "Llama")
    assert scores == whole_scores(tmp_path, "fp32")
    assert told == [
        "t is loaded whole for the scores of its blocks: its checkpoint holds a head beside the embedding, although "
        "they share their weights"
    ]


def test_code_that_no_one_has_read_has_the_model_loaded_whole(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "Olmo2", {})
    scores, (told,) = told_by(folder, "Olmo2")
    assert scores == whole_scores(folder, "fp32", "Olmo2")
    assert told.endswith("no one has read whether the blocks of a 'olmo2' model can be run one by one")


def test_tensors_that_are_renamed_as_they_are_loaded_have_the_model_loaded_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "model", "Llama", {})
    load = streamed_scores.stream_model.__globals__["load_on_meta"]

    def converted(*args: Any) -> Any:
        model = load(*args)
        model._weight_conversions = ["one that was used"]
        return model

    monkeypatch.setattr("harness.tensors.streamed.load_on_meta", converted)
    with pytest.raises(CannotStream, match="renames or joins"):
        stream_model(folder, "fp32", HOST, entry(folder))


def test_what_a_checkpoint_lacks_is_said_as_by_the_whole_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    new_model("Llama", {}).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HarnessError) as of_the_whole:
        load_model(tmp_path, "fp32", HOST)
    with pytest.raises(HarnessError) as of_the_streamed:
        stream_model(tmp_path, "fp32", HOST, entry(tmp_path))
    assert str(of_the_streamed.value) == str(of_the_whole.value)
    assert "model.layers.1.mlp.up_proj.weight" in str(of_the_whole.value)


def test_a_file_that_is_gone_meanwhile_is_said(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "Llama", {})
    model = stream_model(folder, "fp32", HOST, entry(folder))
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(HarnessError, match="the weights cannot be read"):
        streamed_block_scores(OUTLIER, model, SAMPLES, tmp_path)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = new_model("Llama", {})
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = math.inf
    model.save_pretrained(tmp_path)
    found = stream_model(tmp_path, "fp32", HOST, entry(tmp_path))
    with pytest.raises(HarnessError, match="not finite"):
        streamed_block_scores(BlockScoreRequest("weight_norm"), found, [], tmp_path)


def test_scores_are_kept_under_one_key_whichever_way_they_are_taken(tmp_path: Path, tokenizer: Any) -> None:
    folder = saved(tmp_path / "model", "Llama", {})

    def kept(load: Any) -> Sequence[float]:
        return cached_block_scores(
            OUTLIER,
            model={"checksum": "a"},
            dtype="fp32",
            calibration=CalibrationSettings(data="texts", num_samples=2, sequence_length=16),
            data="b",
            device=HOST,
            cache_folder=tmp_path / "cache",
            load=load,
            texts=lambda: ["abcdefgh" * 16],
        )

    def tell(sentence: str) -> None:
        raise AssertionError(sentence)

    score = checkpoint_scorer(folder, "fp32", HOST, entry(folder), scratch=tmp_path / "cache", tell=tell)
    first = kept(lambda: (score, tokenizer))
    assert kept(None) == first, "nothing is loaded again"
    (file,) = (tmp_path / "cache" / "block_scores").iterdir()
    file.unlink()
    model = load_model(folder, "fp32", HOST)
    decoder = find_decoder(model, entry(folder))
    again = kept(lambda: (lambda request, samples: block_scores(request, model, decoder, samples), tokenizer))
    assert again == first
    assert file.is_file()
