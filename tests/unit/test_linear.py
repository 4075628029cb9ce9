"""Linear layers of every kind: GPT-2's, whose weights lie the other way round, and experts that are stacked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

from harness.engine.block_scores import block_scores
from harness.errors import Refused
from harness.method import BlockScoreRequest
from harness.methods._targets import target_layers
from harness.tensors.linear import linear_layers, stacked_weights, weight_of
from tests.families import tiny_config


def scored(layer: nn.Module, kind: Any) -> list[float]:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.block = nn.Embedding(8, 4), nn.Sequential(layer)

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            return self.block(self.embedding(input_ids))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model()
    decoder: Any = SimpleNamespace(blocks=(model.block,), block_names=("block",))
    return block_scores(BlockScoreRequest(kind, 1.0), model, decoder, [torch.arange(8)[None]])  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", ["outlier", "weight_norm", "alpha_hill"])
def test_a_transposed_layer_scores_as_the_linear_layer_that_it_is(kind: str) -> None:
    plain, turned = nn.Linear(4, 6), Conv1D(6, 4)
    with torch.no_grad():
        turned.weight.copy_(plain.weight.t())
        plain.bias.zero_()
    assert torch.equal(weight_of(turned), plain.weight)
    assert scored(turned, kind) == scored(plain, kind)


def test_convolutions_are_no_stacks_and_experts_are() -> None:
    def empty(kind: str) -> nn.Module:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(tiny_config(CONFIG_MAPPING[kind]))

    assert stacked_weights(empty("mamba")) == []
    stacked = stacked_weights(empty("mixtral"))
    assert len(stacked) == 8 and all(".experts." in name for name in stacked)
    assert len(linear_layers(empty("gpt2").get_submodule("transformer.h.0"))) == 4


def test_stacked_experts_are_not_passed_over_by_scores() -> None:
    class Experts(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.stack = nn.Parameter(torch.ones(2, 4, 4))

    with pytest.raises(Refused, match=r"holds stacked weights .0.stack., as fused experts are"):
        scored(Experts(), "weight_norm")


def test_an_adapter_is_not_put_beside_layers_whose_name_experts_share() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(CONFIG_MAPPING["qwen2_moe"]))
    with pytest.raises(Refused, match=r"would be passed over; name the layers as .*shared_expert.down_proj"):
        target_layers(model, ["down_proj"])
    assert len(target_layers(model, ["shared_expert.down_proj"])) == 4
