"""Block scores: the outlier ratio on toy blocks with closed forms, and the cache."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from harness.catalogue.models import BaseModelSpec
from harness.engine.block_scores import ScoreCache, block_scores, calibration_samples
from harness.errors import HarnessError
from harness.method import BlockScoreRequest
from harness.settings import CalibrationSettings
from harness.tensors.decoder import find_decoder
from tests.conftest import SHAPE


class Toy(nn.Module):
    """Two blocks of two linears each, whose inputs are known."""

    def __init__(self, weights: list[list[torch.Tensor]]) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, weights[0][0].shape[1])
        self.blocks = nn.ModuleList()
        for pair in weights:
            block = nn.Module()
            for index, weight in enumerate(pair):
                linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                linear.weight.data = weight
                block.add_module(str(index), linear)
            block.add_module("norm", nn.LayerNorm(weight.shape[1]))
            self.blocks.append(block)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> None:
        hidden = self.embed(input_ids)
        for block in self.blocks:
            for child in block.children():
                child(hidden)


def score(weights: list[list[torch.Tensor]], tau: float = 2.0, inputs: torch.Tensor | None = None) -> list[float]:
    model = Toy(weights)
    model.embed.weight.data = inputs if inputs is not None else torch.ones(4, weights[0][0].shape[1])
    decoder: Any = SimpleNamespace(blocks=tuple(model.blocks), block_names=("0", "1"))
    samples = [torch.tensor([[0, 1, 2, 3]])]
    return block_scores(BlockScoreRequest("outlier", tau), model, decoder, samples)


def test_equal_entries_have_no_outlier() -> None:
    assert score([[torch.ones(3, 4), torch.ones(2, 4)]] * 2) == [0.0, 0.0]


def test_one_pool_and_one_mean_for_all_matrices_of_a_block() -> None:
    small, large = torch.full((4, 4), 0.01), torch.ones(1, 4)
    # Pool of 20 entries, mean 0.208: the four large ones are above twice the mean, 20 %. Alone, no matrix has any.
    assert score([[small, large], [small, small]]) == [pytest.approx(20.0), 0.0]


def test_the_comparison_is_strict_at_ties() -> None:
    weight = torch.tensor([[1.0, 1.0, 1.0, 5.0]])  # mean 2; threshold 4 at tau 2, 5 at tau 2.5
    assert score([[weight, weight]] * 2, tau=2.0)[0] == 25.0
    assert score([[weight, weight]] * 2, tau=2.5)[0] == 0.0


def test_activations_weigh_the_columns() -> None:
    inputs = torch.ones(4, 4)
    inputs[:, 3] = 5.0
    assert score([[torch.ones(2, 4), torch.ones(1, 4)]] * 2, inputs=inputs)[0] == 25.0


def test_scaling_weights_or_inputs_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [[torch.randn(8, 6, generator=generator), torch.randn(4, 6, generator=generator)] for _ in range(2)]
    inputs = torch.rand(4, 6, generator=generator) + 0.1
    plain = score(weights, inputs=inputs)
    assert any(plain)
    assert score([[8 * w for w in pair] for pair in weights], inputs=inputs) == plain
    assert score(weights, inputs=4 * inputs) == plain


@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2"])
def test_against_a_direct_computation(architecture: str, tmp_path: Path) -> None:
    import transformers

    config = getattr(transformers, f"{architecture}Config")(**SHAPE, head_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    spec = BaseModelSpec(name="t", architecture=f"{architecture}ForCausalLM", folder=tmp_path)
    decoder = find_decoder(model, spec)
    samples = [torch.arange(32).view(1, 32), torch.arange(32, 64).view(1, 32)]
    scores = block_scores(BlockScoreRequest("outlier", 3.0), model, decoder, samples)
    inputs: dict[str, list[torch.Tensor]] = {}
    block = decoder.blocks[2]
    hooks = [
        module.register_forward_hook(lambda _, given, __, name=name: inputs.setdefault(name, []).append(given[0]))
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        for sample in samples:
            model(input_ids=sample)
    for hook in hooks:
        hook.remove()
    assert len(inputs) == 7
    pool = torch.cat(
        [
            (block.get_submodule(name).weight.abs() * torch.cat(given, 1).flatten(0, 1).norm(dim=0)).flatten()
            for name, given in inputs.items()
        ]
    )
    assert scores[2] == pytest.approx(100 * float((pool > 3 * pool.mean()).double().mean()), abs=1e-9)
    assert scores[2] > 0


def test_weight_norm_is_the_frobenius_norm_of_the_pool() -> None:
    weights = [[torch.full((2, 2), 2.0), torch.full((1, 2), 3.0)]]
    model = Toy(weights)
    decoder: Any = SimpleNamespace(blocks=tuple(model.blocks), block_names=("0",))
    assert block_scores(BlockScoreRequest("weight_norm"), model, decoder, []) == [pytest.approx((16 + 18) ** 0.5)]


def test_calibration_takes_what_it_needs_and_says_when_there_is_too_little(tokenizer: Any) -> None:
    settings = CalibrationSettings(data="texts", num_samples=2, sequence_length=4)
    samples = calibration_samples(["abcdefgh"], tokenizer, settings)
    assert [tokenizer.decode(sample[0]) for sample in samples] == ["abcd", "efgh"]
    with pytest.raises(HarnessError, match="holds 3 tokens, fewer than the 8"):
        calibration_samples(["a"], tokenizer, settings)


def test_the_cache_answers_only_for_the_very_same_key(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path)
    cache.put({"tau": 13.0, "model": "a"}, [1.0, 2.0])
    assert cache.get({"model": "a", "tau": 13.0}) == [1.0, 2.0]
    assert cache.get({"model": "b", "tau": 13.0}) is None
    for file in tmp_path.iterdir():
        file.write_text("{cut")
    assert cache.get({"model": "a", "tau": 13.0}) is None
