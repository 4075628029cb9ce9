"""Where the parts of a decoder are: found by looking at it, or asked for in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from harness.tensors.parts import PartsUnknown, find_parts
from tests.families import LAYERS, tiny_config

PLACES = {
    "bloom": ("transformer.h", "transformer.word_embeddings", "transformer.ln_f", "lm_head"),
    "falcon": ("transformer.h", "transformer.word_embeddings", "transformer.ln_f", "lm_head"),
    "gemma3_text": ("model.layers", "model.embed_tokens", "model.norm", "lm_head"),
    "gpt2": ("transformer.h", "transformer.wte", "transformer.ln_f", "lm_head"),
    "gpt_neox": ("gpt_neox.layers", "gpt_neox.embed_in", "gpt_neox.final_layer_norm", "lm_head"),
    "gptj": ("transformer.h", "transformer.wte", "transformer.ln_f", "lm_head"),
    "mamba": ("backbone.layers", "backbone.embeddings", "backbone.norm_f", "lm_head"),
    "mbart": ("model.decoder.layers", "model.decoder.embed_tokens", "model.decoder.layer_norm", "lm_head"),
    "mixtral": ("model.layers", "model.embed_tokens", "model.norm", "lm_head"),
    "mpt": ("transformer.blocks", "transformer.wte", "transformer.norm_f", "lm_head"),
    "opt": ("model.decoder.layers", "model.decoder.embed_tokens", "model.decoder.final_layer_norm", "lm_head"),
    "olmo": ("model.layers", "model.embed_tokens", "model.norm", "lm_head"),
    "phi": ("model.layers", "model.embed_tokens", "model.final_layernorm", "lm_head"),
}
"""As transformers calls them; of GPT-NeoX the head, embed_out in its checkpoints, alone has another name there."""


def empty(kind: str, **changes: Any) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(tiny_config(CONFIG_MAPPING[kind], **changes), dtype=torch.bfloat16)


@pytest.mark.parametrize("kind", PLACES)
def test_the_parts_of_a_family_are_where_its_checkpoints_have_them(kind: str) -> None:
    found = find_parts(empty(kind), {})
    assert tuple(found.values()) == PLACES[kind]
    assert tuple(found) == ("blocks", "embedding", "final_norm", "head")


def test_the_norm_of_the_embeddings_is_no_final_norm() -> None:
    assert find_parts(empty("bart"), {})["final_norm"] == ""


def test_the_blocks_of_text_are_told_from_those_of_images() -> None:
    model = empty("gemma3")
    assert len(model.get_submodule("model.vision_tower.encoder.layers")) == LAYERS
    assert find_parts(model, {})["blocks"] == "model.language_model.layers"


def test_what_the_user_says_is_taken_and_the_rest_is_found_for_it() -> None:
    said = {"blocks": "git.encoder.layer", "embedding": None, "final_norm": None, "head": None}
    found = find_parts(empty("git"), said)
    assert found["blocks"] == "git.encoder.layer"
    assert found["embedding"] == "git.embeddings.word_embeddings"
    assert find_parts(empty("gpt2"), {"final_norm": ""})["final_norm"] == ""


@pytest.mark.parametrize(
    ("kind", "said", "sentence"),
    [
        (
            "git",
            {},
            r"2 lists of modules as long as its configuration says \(4\), set blocks in its entry to one of git",
        ),
        ("xlm", {}, r"set blocks in its entry to one of transformer.attentions \(\d+\), transformer.ffns"),
        ("mllama", {}, "called 3 times in a forward pass, not each once in their order"),
        ("xlnet", {}, "its final norm cannot be told: set final_norm in its entry"),
        ("gpt2", {"blocks": "model.layers"}, r"no module 'model.layers' for its blocks; there are transformer.h: set"),
        ("gpt2", {"head": "head"}, "no module 'head' for its head: set head in its entry, or leave it out"),
        ("gpt2", {"blocks": "."}, "no module '.' for its blocks"),
        ("gpt2", {"embedding": ""}, "no module '' for its embedding"),
        ("gpt2", {"head": "transformer.wte"}, "'transformer.wte' is not called behind its blocks"),
    ],
)
def test_what_cannot_be_told_is_asked_for_in_one_sentence(kind: str, said: dict[str, str], sentence: str) -> None:
    with pytest.raises(PartsUnknown, match=sentence) as caught:
        find_parts(empty(kind), said)
    assert "\n" not in str(caught.value)
