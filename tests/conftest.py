"""Fixtures of every test: tiny random models in folders, a tokenizer of bytes, and a guard on the network."""

from __future__ import annotations

import gc
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from harness.runs.signals import hear_interrupts

hear_interrupts()  # tests send it, to themselves and to what they start; begun by a script with & they would ignore it
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHAPE = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
}


def pytest_collection_finish() -> None:
    """Set aside what the imports made: every run in this process collects garbage, and would look through all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that opens a socket to anything but this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def needed(place: Path) -> Path:
    """Return a file or folder of the cache that tox prepares; missing, it fails under CI and skips elsewhere."""
    from harness.assets.cache import is_complete

    if not (place.is_file() or is_complete(place)):
        sentence = f"{place} is not prepared: run 'harness prepare --suite quickstart'"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(sentence)
    return place


def byte_tokenizer() -> Any:
    """Return a tokenizer whose tokens are bytes, with <s>, </s> and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    wrapped.chat_template = (
        "{% for message in messages %}<s>{{ message.role }}: {{ message.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    return wrapped


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return byte_tokenizer()


def _save(folder: Path, config: Any, kind: str, tied: bool) -> Path:
    import torch
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, kind)(config(**SHAPE, tie_word_embeddings=tied))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig

    return _save(tmp_path_factory.mktemp("models") / "tiny-llama", LlamaConfig, "LlamaForCausalLM", tied=False)


@pytest.fixture(scope="session")
def tiny_llama_tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig

    return _save(tmp_path_factory.mktemp("models") / "tiny-llama-tied", LlamaConfig, "LlamaForCausalLM", tied=True)


@pytest.fixture(scope="session")
def tiny_mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import MistralConfig

    return _save(tmp_path_factory.mktemp("models") / "tiny-mistral", MistralConfig, "MistralForCausalLM", tied=False)
