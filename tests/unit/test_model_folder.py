"""A local model's entry is held against its folder before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness.catalogue.models import BaseModelSpec
from harness.errors import HarnessError
from harness.preparing.assets import resolve_model
from harness.preparing.model_folder import check_entry, tensor_names

NAMES = ("model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight", "model.norm.weight")


def folder_of(path: Path, names: tuple[str, ...] = NAMES, architectures: Any = ("LlamaForCausalLM",)) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": architectures}))
    for number, name in enumerate(names):
        save_file({name: torch.zeros(1)}, path / f"model-{number}.safetensors")
    return path


def entry(folder: Path, **changes: Any) -> BaseModelSpec:
    return BaseModelSpec(**{"name": "mine", "architecture": "LlamaForCausalLM", "folder": folder, **changes})


def test_an_entry_that_fits_is_taken(tiny_llama: Path, tiny_llama_tied: Path, tmp_path: Path) -> None:
    for folder in (tiny_llama, tiny_llama_tied, folder_of(tmp_path / "one")):
        assert resolve_model(entry(folder)).folder == folder
    assert set(tensor_names(tmp_path / "one")) == set(NAMES)


def test_an_architecture_that_is_another_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "one", architectures=["Phi3ForCausalLM"])
    with pytest.raises(
        HarnessError, match=r"architecture = 'LlamaForCausalLM' in its entry, but config.json in .* says P"
    ):
        resolve_model(entry(folder))
    assert resolve_model(entry(folder, architecture="Phi3ForCausalLM")).folder == folder


def test_a_folder_that_stands_in_for_a_named_model_has_its_own_architecture(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "one", architectures=["Phi3ForCausalLM"])
    named = BaseModelSpec(name="llama2-7b", architecture="LlamaForCausalLM", hub_id="someone/llama")
    assert resolve_model(named, folder).folder == folder


@pytest.mark.parametrize("role", ["blocks", "embedding", "final_norm"])
def test_a_path_that_holds_no_tensor_is_refused(role: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "one")
    with pytest.raises(
        HarnessError, match=f"is inside 'transformer.x', where its entry has the {role}.*: set {role} in"
    ):
        resolve_model(entry(folder, **{role: "transformer.x"}))


def test_the_sentence_about_blocks_says_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(
        HarnessError, match=r"its numbered modules are model\.layers: set blocks in the entry of the mod"
    ):
        resolve_model(entry(folder_of(tmp_path / "one"), blocks="model.decoder"))


def test_a_path_is_found_in_a_checkpoint_without_or_with_a_further_word(tmp_path: Path) -> None:
    gpt2 = {"blocks": "transformer.h", "embedding": "transformer.wte", "final_norm": "transformer.ln_f"}
    bare = folder_of(tmp_path / "bare", ("h.0.mlp.c_fc.weight", "wte.weight", "ln_f.weight"), ["GPT2LMHeadModel"])
    assert resolve_model(entry(bare, architecture="GPT2LMHeadModel", **gpt2)).folder == bare
    wrapped = folder_of(tmp_path / "wrapped", tuple(f"_orig_mod.{name}" for name in NAMES))
    check_entry(entry(wrapped), wrapped, own=True)


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0[]", (1 << 40).to_bytes(8, "little")])
def test_what_cannot_be_read_here_is_left_to_loading(content: bytes, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "one", (), architectures={"not": "a list"})
    (folder / "model.safetensors").write_bytes(content)
    assert tensor_names(folder) == []
    check_entry(entry(folder, blocks="nowhere"), folder, own=True)
