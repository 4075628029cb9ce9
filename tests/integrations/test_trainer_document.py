"""docs/in-your-own-trainer.md, run as it stands but for its numbers, which are made small."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

DOCUMENT = (Path(__file__).parents[2] / "docs" / "in-your-own-trainer.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
SMALLER = {
    "max_steps=1000": "max_steps=4",
    "num_samples=128": "num_samples=2",
    "sequence_length=2048": "sequence_length=32",
}


def model_with_outliers() -> Any:
    """Return a model large enough for a label as it was published, with outliers, more of them block by block."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=260,
                hidden_size=160,
                intermediate_size=160,
                num_hidden_layers=6,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=64,
            )
        )
    with torch.no_grad():
        for index, block in enumerate(model.model.layers):
            block.mlp.up_proj.weight[0, : index + 1] *= 1000.0
    return model


def run_block(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **names: Any) -> dict[str, Any]:
    """Run a code block in a folder; return its names."""
    for long, short in SMALLER.items():
        block = block.replace(long, short)
    assert "1000" not in block and "2048" not in block
    monkeypatch.chdir(folder)
    exec(compile(block, "in-your-own-trainer.md", "exec"), names)
    return names


def test_the_ten_lines_train_and_save_what_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    from transformers import LlamaForCausalLM

    model = model_with_outliers()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = [
        {"input_ids": list(range(index, index + 8)), "labels": list(range(index, index + 8))} for index in range(64)
    ]
    names = run_block(
        BLOCKS[0], tmp_path, monkeypatch, model=model, tokenizer=tokenizer, texts=["some text"] * 20, rows=rows
    )
    proof = names["prepared"].run.method.proof()
    assert names["trainer"].state.global_step == 4 and len(proof["draws"][0]["blocks"]) == 5
    trained = dict(LlamaForCausalLM.from_pretrained(tmp_path / "trained").named_parameters())
    moved = {
        name.split(".")[2] for name in before if ".layers." in name and not torch.equal(trained[name], before[name])
    }
    assert moved == {str(block) for block in proof["draws"][0]["blocks"]}


def test_the_lines_for_trl_train_and_save_what_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    pytest.importorskip("trl", reason="needs TRL: pip install trl")
    from datasets import Dataset
    from transformers import LlamaForCausalLM

    dataset = Dataset.from_dict({"text": [f"row {index} of the data" for index in range(64)]})
    names = run_block(
        BLOCKS[1], tmp_path, monkeypatch, model=model_with_outliers(), tokenizer=tokenizer, dataset=dataset
    )
    assert names["trainer"].state.global_step == 4
    assert isinstance(LlamaForCausalLM.from_pretrained(tmp_path / "trained"), LlamaForCausalLM)


def test_every_code_block_is_run_above_and_the_names_of_the_document_are_there() -> None:
    from dataclasses import fields

    from transformers import TrainingArguments

    assert len(BLOCKS) == 2 and all(long in "".join(BLOCKS) for long in SMALLER)
    arguments = {one.name for one in fields(TrainingArguments)}
    refused = DOCUMENT.partition("## What is refused")[2]
    named = set(re.findall(r"`([a-z_0-9]+)`", refused)) - {"prepare", "base", "args", "resume_from_checkpoint"}
    assert len(named & arguments) > 10 and named - arguments == {"update_in_backward", "two_pass_clipping"}
