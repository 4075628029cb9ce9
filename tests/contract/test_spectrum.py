"""Spectrum: its score against the formula computed by hand, its choice against published scores, what is trained."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from harness.errors import Refused
from harness.methods.spectrum import matrices, selected, signal_to_noise

LLAMA_3_2_1B = {
    "q_proj": (
        "0.0380407 0.0707998 0.0787412 0.0808971 0.0859194 0.0985218 0.0969065 0.111813 0.120421 0.0979932 0.109011 "
        "0.0930715 0.0880951 0.088864 0.0995506 0.0892934",
        [8, 7, 10, 14],
    ),
    "v_proj": (
        "2.55019 9.4495 7.99208 50.6946 19.0835 7.21597 11.2774 4.57971 10.9407 553.442 20.5943 26.6369 8.61475 17.722 "
        "1.48501 2.57769",
        [9, 3, 11, 10],
    ),
    "down_proj": (
        "57.098 9.53898 6.22702 5.66069 5.17843 3.56383 3.09181 2.45639 4.52533 3.94091 5.44725 4.8076 3.91537 3.48204 "
        "2.60451 3.72377",
        [0, 1, 2, 3],
    ),
}
"""Scores of meta-llama/Llama-3.2-1B, a layer each, and which are the top 25 %. Source: axolotl 0.19.0,
integrations/spectrum/model_snr_results/snr_results_meta-llama-Llama-3.2-1B.json, six digits."""


@pytest.mark.parametrize("kind", LLAMA_3_2_1B)
def test_the_published_scores_give_the_published_choice(kind: str) -> None:
    scores, top = LLAMA_3_2_1B[kind]
    found = dict(enumerate(map(float, scores.split())))
    assert selected(found, 25) == top
    assert len(selected(found, 50)) == 8 and selected(found, 6) == [] and len(selected(found, 99.9)) == 15


def test_equal_scores_go_to_the_earlier_block_and_infinite_ones_come_first() -> None:
    assert selected({0: 1.0, 1: math.inf, 2: 1.0, 3: math.inf}, 75) == [1, 3, 0]


def by_hand(values: list[float], rows: int, columns: int) -> float:
    """Return the score with torch's quantiles and Python's sums."""
    S = torch.tensor(values)
    sigma = float(torch.quantile(S, 0.75) - torch.quantile(S, 0.25)) / 1.349
    edge = sigma * (1 + math.sqrt(min(rows, columns) / max(rows, columns)))
    below = [value for value in values if value <= edge]
    return sum(value for value in values if value > edge) / (sum(below) if below else 1.0) / values[0]


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (6, 6)])
@pytest.mark.parametrize("values", [[9.0, 4.0, 3.0, 2.0, 1.0, 0.5], [9.0, 8.9, 8.8, 8.7, 8.6, 8.5]])
def test_the_score_is_the_formula(shape: tuple[int, int], values: list[float]) -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(n, 6, generator=generator, dtype=torch.float64)).Q for n in shape)
    matrix = (left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.t()).float()
    wanted = by_hand(values, *shape)
    assert float(signal_to_noise(matrix)) == pytest.approx(wanted, rel=1e-4)
    # as published, the score depends on the scale wherever all is signal, and on its inverse elsewhere
    assert float(signal_to_noise(matrix * 4)) == pytest.approx(
        wanted if values[0] / values[-1] < 2 else wanted / 4, rel=1e-4
    )


def test_of_noise_every_singular_value_is_signal() -> None:
    noise = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(noise)
    assert float(signal_to_noise(noise)) == pytest.approx(float(values.sum() / values[0]), rel=1e-4)


def test_what_is_selected_is_trained_with_embedding_and_head(tiny: Any) -> None:
    run = tiny.start("spectrum", top_percent=25.0)
    proof = run.method.proof()["spectrum"]
    fresh = tiny.model("llama")
    for kind, scores in proof["scores"].items():
        weights = [block.get_submodule(kind).weight.detach() for block in fresh.model.layers]
        assert scores == pytest.approx([float(signal_to_noise(weight)) for weight in weights])
        assert proof["selected"][kind] == [max(range(4), key=lambda block, scores=scores: scores[block])]
    names = {f"model.layers.{blocks[0]}.{kind}.weight" for kind, blocks in proof["selected"].items()}
    trained = {name for name, p in run.model.named_parameters() if p.requires_grad}
    assert trained == names | {"model.embed_tokens.weight", "lm_head.weight"} and len(names) == 7
    assert {name for group in run.optimizer.param_groups for name in group["param_names"]} == trained
    assert len(matrices(run.context)) == 28
    alone = tiny.start("spectrum", train_embedding=False, train_head=False)
    assert not alone.context.decoder.head.weight.requires_grad
    assert not alone.context.decoder.embedding.weight.requires_grad


def test_a_percentage_that_selects_nothing_is_refused(tiny: Any) -> None:
    """A fraction is not a percentage: 0.5 would be half of one percent."""
    with pytest.raises(Refused, match=r"top_percent = 0\.5 selects none of the at most 4 matrices of a kind"):
        tiny.start("spectrum", top_percent=0.5)


def test_of_a_head_that_is_the_embedding_one_alone_is_refused(tiny: Any) -> None:
    with pytest.raises(Refused, match=r"one matrix: train_embedding and train_head must be the same"):
        tiny.start("spectrum", tied=True, train_head=False)


def test_weights_that_are_not_finite_are_refused(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(weight: torch.Tensor) -> torch.Tensor:
        raise torch.linalg.LinAlgError("The algorithm failed to converge")

    monkeypatch.setattr("harness.methods.spectrum.signal_to_noise", refuse)
    with pytest.raises(Refused, match=r"singular values of model\.layers\.0\.self_attn\.q_proj cannot be computed"):
        tiny.start("spectrum")
