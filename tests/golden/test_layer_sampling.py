"""Facts of OwLore's published metric file and of its draws.

The counts are what the 32 percentages of ``metric_cache/llama2_7b_ratio_13.txt`` (pixeli99/OwLore@e415973) come to on
the 202 375 168 weights of the seven matrices of one LLaMA-2-7B block. Inclusion probabilities: successive sampling, by
quadrature over exponential clocks. Draws: numpy's legacy generator, seed 111, as ``np.random.seed(111)`` gives them.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.errors import HarnessError, Refused
from harness.methods._block_probabilities import block_probabilities, outlier_counts, read_scores
from harness.methods._layer_sampling import draw_blocks
from harness.methods._settings import LayerSamplingSettings

POOL = 4 * 4096**2 + 3 * 4096 * 11008
COUNTS = [
    541979, 597569, 257904, 231619, 199852, 178834, 177772, 169532, 162187, 146067, 142991, 140951,
    127415, 119562, 111755, 108706, 94767, 79395, 67968, 68758, 63933, 56416, 56350, 46425,
    51455, 42344, 48996, 36793, 37189, 42199, 48708, 166881,
]  # fmt: skip
P = [
    .122529, .135097, .058306, .052364, .045182, .040430, .040190, .038327, .036667, .033022, .032327, .031866, .028806,
    .027030, .025265, .024576, .021425, .017949, .015366, .015545, .014454, .012754, .012739, .010496, .011633, .009573,
    .011077, .008318, .008408, .009540, .011012, .037728,
]  # fmt: skip
INCLUSION = {
    2: {0: 0.235719, 1: 0.257659, 2: 0.116700, 15: 0.050091, 27: 0.017094, 31: 0.076369},
    5: {0: 0.518873, 1: 0.553883, 2: 0.290244, 15: 0.132423, 27: 0.046471, 31: 0.197233},
}
OWL_111 = [[10, 1, 5, 15, 2], [1, 0, 5, 3, 31], [1, 0, 12, 10, 2], [6, 0, 24, 17, 21], [18, 31, 9, 5, 0]]
UNIFORM_111 = [[25, 15], [0, 16], [21, 15], [28, 1], [19, 3]]


def settings(active_layers=5, probability="file", **changes):
    values = {
        "active_layers": active_layers,
        "interval_steps": 50,
        "sampling": "without_replacement",
        "probability": probability,
        "state_policy": "keep",
        "returning_step_counter": "keep",
        "train_embedding": True,
        "train_head": True,
        "train_final_norm": True,
    }
    return LayerSamplingSettings(**(values | changes))


@pytest.fixture
def published(tmp_path):
    """The file as published: one number a line, 18 decimals of scientific notation."""
    file = tmp_path / "ratio_13.txt"
    file.write_text("".join(f"{100 * count / POOL:.18e}\n" for count in COUNTS))
    return str(file)


def probabilities(published, **changes):
    return block_probabilities(settings(probability_file=published, **changes), 32, None)


def test_the_file_holds_whole_numbers_of_the_seven_matrices(published, tmp_path):
    scores = read_scores(published)
    assert POOL == 202_375_168 and sum(COUNTS) == 4_423_272
    assert sum(scores) == pytest.approx(2.1856792232533193, rel=1e-14)
    assert outlier_counts(scores, POOL) == COUNTS
    with pytest.raises(HarnessError, match="not a whole number"):
        outlier_counts(scores, POOL + 2 * 4096)  # with the two norms


def test_probabilities_from_the_published_file(published):
    p = probabilities(published)
    assert p == pytest.approx(P, abs=1e-6)
    assert (int(np.argmax(p)), int(np.argmin(p))) == (1, 27)


def test_figures_of_the_published_probabilities(published):
    p = np.array(probabilities(published))
    assert float(np.exp(-(p * np.log(p)).sum())) == pytest.approx(23.51, abs=0.005)
    assert float(np.sort(p)[-5:].sum()) == pytest.approx(0.413, abs=5e-4)
    assert float(p[:16].sum()) == pytest.approx(0.772, abs=5e-4)
    assert float(stats.spearmanr(p, -np.arange(32)).statistic) == pytest.approx(0.888, abs=5e-4)


def test_reversed_probabilities_give_the_strongest_block_none():
    scores = [100 * count / POOL for count in COUNTS]
    p = block_probabilities(settings(probability="outlier_reverse", tau=13.0), 32, scores)
    assert p[1] == 0.0 and int(np.argmax(p)) == 27 and sum(p) == pytest.approx(1.0)


def test_legacy_draws_are_those_of_the_released_code(published):
    generator = np.random.RandomState(111)
    config = settings(probability_file=published, legacy_draws_seed=111)
    assert [draw_blocks(config, 32, probabilities(published), generator) for _ in range(5)] == OWL_111
    generator = np.random.RandomState(111)
    config = settings(active_layers=2, probability="uniform", legacy_draws_seed=111)
    assert [draw_blocks(config, 32, None, generator) for _ in range(5)] == UNIFORM_111


def inclusion(p, active_layers):
    """Return the probability of each block to be among the first ``active_layers`` of successive draws.

    Each block rings at an exponential time of rate p; drawn are the first to ring. Block i is drawn where fewer than
    ``active_layers`` of the others have rung: the integral over t of p_i exp(-p_i t) P(few others).
    """
    nodes, weights = np.polynomial.legendre.leggauss(400)
    x, w = (nodes + 1) / 2, weights / 2
    t = x / (1 - x)
    result = []
    for i, p_i in enumerate(p):
        few = np.zeros((active_layers, t.size))
        few[0] = 1.0
        for j, p_j in enumerate(p):
            if j != i:
                rung = 1 - np.exp(-p_j * t)
                few[1:] = few[1:] * (1 - rung) + few[:-1] * rung
                few[0] *= 1 - rung
        result.append(float((w / (1 - x) ** 2 * p_i * np.exp(-p_i * t) * few.sum(0)).sum()))
    return np.array(result)


@pytest.mark.parametrize("active_layers", [2, 5])
def test_inclusion_frequencies_follow_successive_sampling(published, active_layers):
    p = probabilities(published)
    expected = inclusion(p, active_layers)
    for block, value in INCLUSION[active_layers].items():
        assert expected[block] == pytest.approx(value, abs=1e-6)
    assert expected.sum() == pytest.approx(active_layers, abs=1e-6)
    num_draws, generator = 10_000, np.random.default_rng(5)
    config = settings(active_layers=active_layers, probability_file=published)
    drawn = np.zeros((num_draws, 32))
    for row in drawn:
        row[draw_blocks(config, 32, p, generator)] = 1.0
    assert (drawn.sum(1) == active_layers).all()

    def chi_square(wanted):
        """The last block follows from the others, so there are 31 degrees of freedom."""
        gap = (drawn.mean(0) - wanted)[:-1]
        return float(num_draws * gap @ np.linalg.solve(np.cov(drawn[:, :-1].T), gap))

    assert stats.chi2.sf(chi_square(expected), 31) > 0.01
    if active_layers == 5:  # with 2 so many draws do not tell the laws apart
        assert stats.chi2.sf(chi_square(active_layers * np.array(p)), 31) < 1e-6  # independent coins are another law


def test_coin_flips_are_not_defined_at_eight_active_layers(published):
    with pytest.raises(Refused, match=r"for block 1 it is 1.081"):
        probabilities(published, active_layers=8, sampling="bernoulli")
