"""Of every causal language model that transformers can build, where its parts are, beside what its own code does.

Nothing that is held against the finder comes from it: the number of layers is that of the configuration, embedding and
head are transformers' own, and a forward pass of real numbers on a CPU tells the order in which modules are called.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from harness.tensors.parts import PartsUnknown, find_parts
from tests.families import LAYERS, tiny_config

pytestmark = pytest.mark.slow
KINDS = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
UNBUILT = {
    "cohere_compass_text": "its own configuration has no layer of full attention",
    "dbrx": "its configuration lacks what its rotation asks for",
    "dots1": "its configuration lacks the number of experts",
    "dots3_note": "its configuration binds numbers of heads in several tables",
    "dots3_note_text": "its configuration binds numbers of heads in several tables",
    "gemma3n": "its tower of images needs timm",
    "gemma3n_text": "its layers share keys and values by position",
    "gemma4_assistant": "its own configuration is refused by its check",
    "gemma4_unified_assistant": "its layers share keys and values by position",
    "lfm2_moe": "its configuration lacks the kinds of layers",
    "musicgen": "its configuration is of several models",
    "musicgen_melody": "its configuration is of several models",
    "qwen4_exp": "its configuration lacks the numbers of heads",
    "qwen4_exp_text": "its configuration lacks the numbers of heads",
    "zamba": "its shared layers stand at fixed places beyond four",
}
"""What transformers itself does not build from a small configuration."""
REFUSED = {
    "blt": "blocks",  # six lists
    "git": "blocks",  # two towers, made equally long here
    "hrm_text": "blocks",  # two lists that are gone through in turns
    "mllama": "blocks",  # some are passed over where there is no image
    "phi4_multimodal": "blocks",  # three towers, made equally long here
    "reformer": "final_norm",  # its pass cannot be made without values, nor those of the next three
    "xlm": "blocks",  # the parts of a block are in lists of their own
    "xlnet": "final_norm",
    "xlstm": "final_norm",
    "xmod": "final_norm",
}
"""What is not told, by the part that the sentence asks for."""
NOT_RUN = {
    "deepseek_v4": "sizes of its heads bind each other",
    "longcat_flash": "sizes of its heads bind each other",
    "zamba2": "sizes of its heads bind each other",
}
"""What is built small and does not run so: its order is not watched here."""
NO_NORM = {
    "bart", "bert-generation", "blenderbot-small", "marian", "mvp", "openai-gpt", "plbart", "prophetnet", "trocr",
}  # fmt: skip
"""Whose blocks end in a norm, so that none stands behind the last."""


def built(kind: str, device: str, dtype: torch.dtype) -> Any:
    config = tiny_config(CONFIG_MAPPING[kind])
    with torch.device(device), torch.random.fork_rng():
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def called(model: nn.Module) -> list[str]:
    """Return the names of modules as a pass of real numbers calls them."""
    order: list[str] = []
    names = {module: name for name, module in model.named_modules()}
    handles = [module.register_forward_pre_hook(lambda one, _: order.append(names[one])) for module in names]
    with torch.no_grad():
        model(input_ids=torch.arange(2, 10)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return order


def test_the_lists_name_kinds_that_there_are_and_do_not_grow() -> None:
    assert {*UNBUILT, *REFUSED, *NOT_RUN, *NO_NORM} <= set(KINDS)
    assert (len(UNBUILT), len(REFUSED), len(NOT_RUN), len(NO_NORM)) == (15, 10, 3, 9)
    assert len(KINDS) == 189


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_every_causal_model_are_found_or_asked_for(kind: str) -> None:
    if kind in UNBUILT:
        with pytest.raises((ValueError, TypeError, AttributeError, KeyError, ImportError, StrictDataclassError)):
            built(kind, "meta", torch.bfloat16)
        return
    empty = built(kind, "meta", torch.bfloat16)
    if kind in REFUSED:
        with pytest.raises(PartsUnknown, match=f"set {REFUSED[kind]} = |set {REFUSED[kind]} in its entry"):
            find_parts(empty, {})
        return
    found = find_parts(empty, {})
    model = built(kind, "cpu", torch.float32)
    modules = dict(model.named_modules())
    blocks = [f"{found['blocks']}.{name}" for name, _ in modules[found["blocks"]].named_children()]
    assert len(blocks) == LAYERS
    assert modules[found["embedding"]] is model.get_input_embeddings()
    assert modules[found["head"]] is model.get_output_embeddings()
    assert (found["final_norm"] == "") == (kind in NO_NORM)
    if kind in NOT_RUN:
        with pytest.raises(RuntimeError):
            called(model)
        return
    order = called(model)
    assert [name for name in order if name in blocks] == blocks
    assert order.index(found["embedding"]) < order.index(blocks[0])
    assert order.index(found["head"]) > order.index(blocks[-1])
    behind = order[
        max(i for i, name in enumerate(order) if name.startswith(f"{blocks[-1]}")) + 1 : order.index(found["head"])
    ]
    norms = [name for name in behind if "norm" in type(modules[name]).__name__.lower()]
    assert norms[:1] == [found["final_norm"]][: bool(found["final_norm"])]


def test_every_class_of_the_mapping_is_walked() -> None:
    kinds = {config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING}
    assert kinds <= set(KINDS)
