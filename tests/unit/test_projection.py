"""Projectors: which side, how many dimensions, what they keep, and what they keep alive."""

from __future__ import annotations

import pytest
import torch

from harness.methods._projection import (
    Basis,
    basis_for,
    captured_energy,
    exact_projector,
    project,
    project_back,
    randomized_projector,
)

SHAPES = [(24, 10), (10, 24), (16, 16)]


def gradient(shape, seed=0, decay=1.0):
    """Return a matrix whose singular values fall like 1/k^decay."""
    generator = torch.Generator().manual_seed(seed)
    size = min(shape)
    U = torch.linalg.qr(torch.randn(shape[0], size, generator=generator)).Q
    V = torch.linalg.qr(torch.randn(shape[1], size, generator=generator)).Q
    return (U * torch.arange(1, size + 1).float().pow(-decay)) @ V.t()


def streams(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("shape", "rule", "side"),
    [
        ((24, 10), "reference", "right"),
        ((10, 24), "reference", "left"),
        ((16, 16), "reference", "right"),
        ((24, 10), "smaller", "left"),
        ((10, 24), "smaller", "right"),
        ((16, 16), "smaller", "right"),
    ],
)
def test_sides(shape, rule, side):
    assert basis_for(torch.Size(shape), 4, rule) == Basis(side, 4)


@pytest.mark.parametrize(
    ("name", "shape", "projector", "moment"),
    [
        ("llama2-7b q,k,v,o", (4096, 4096), 256 * 4096, 4096 * 256),
        ("llama2-7b gate,up", (11008, 4096), 256 * 4096, 11008 * 256),
        ("llama2-7b down", (4096, 11008), 4096 * 256, 256 * 11008),
        ("llama3-8b k,v", (1024, 4096), 1024 * 256, 256 * 4096),
    ],
)
def test_state_of_real_matrices_has_the_published_size(name, shape, projector, moment):
    basis = basis_for(torch.Size(shape), 256, "reference")
    kept, other = (shape[1], shape[0]) if basis.side == "right" else shape
    assert (basis.rank * kept, basis.rank * other) == (projector, moment)


def test_elements_of_a_llama2_7b_block_at_rank_256():
    shapes = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
    total = sum(256 * (2 * max(shape) + min(shape)) for shape in shapes)
    assert total == 32_636_928  # 2 x 12 648 448 + 7 340 032


def test_rank_is_clipped_to_the_matrix():
    assert basis_for(torch.Size((24, 10)), 128, "reference").rank == 10


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", ["reference", "smaller"])
@pytest.mark.parametrize("kind", ["svd", "randomized"])
def test_full_rank_projects_back_to_the_gradient(shape, rule, kind):
    grad = gradient(shape, decay=0.2)
    basis = basis_for(grad.shape, 999, rule)
    projector = exact_projector(grad, basis) if kind == "svd" else randomized_projector(grad, basis, streams())
    back = project_back(project(grad, projector, basis.side), projector, basis.side)
    assert torch.allclose(back, grad, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", ["reference", "smaller"])
@pytest.mark.parametrize("kind", ["svd", "randomized"])
def test_projectors_are_orthonormal_and_updates_stay_in_their_subspace(shape, rule, kind):
    grad, basis = gradient(shape), basis_for(torch.Size(shape), 4, rule)
    projector = exact_projector(grad, basis) if kind == "svd" else randomized_projector(grad, basis, streams())
    rows = projector if basis.side == "right" else projector.t()
    assert rows.shape == (4, shape[1] if basis.side == "right" else shape[0])
    assert torch.allclose(rows @ rows.t(), torch.eye(4), atol=1e-5)
    low = project(gradient(shape, seed=1), projector, basis.side)
    full = project_back(low, projector, basis.side)
    assert torch.allclose(project(full, projector, basis.side), low, atol=1e-5)
    assert torch.linalg.matrix_rank(full, tol=1e-4) <= 4


@pytest.mark.parametrize("shape", SHAPES)
def test_the_exact_projector_keeps_the_leading_singular_values(shape):
    grad = gradient(shape)
    values = torch.linalg.svdvals(grad).square()
    basis = basis_for(grad.shape, 3, "reference")
    assert captured_energy(grad, exact_projector(grad, basis), basis.side) == pytest.approx(
        float(values[:3].sum() / values.sum()), rel=1e-5
    )


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (256, 256)])
@pytest.mark.parametrize("decay", [0.5, 0.73, 1.0])  # real gradients measured: 0.73 and steeper
def test_the_randomized_projector_keeps_99_percent_of_what_the_exact_one_keeps(shape, decay):
    grad, basis = gradient(shape, decay=decay), basis_for(torch.Size(shape), 32, "reference")
    exact = captured_energy(grad, exact_projector(grad, basis), basis.side)
    assert captured_energy(grad, randomized_projector(grad, basis, streams()), basis.side) >= 0.99 * exact


def test_the_kept_slice_keeps_nothing_larger_alive():
    for shape in SHAPES:
        grad, basis = gradient(shape), basis_for(torch.Size(shape), 4, "reference")
        for projector in (exact_projector(grad, basis), randomized_projector(grad, basis, streams())):
            assert projector.untyped_storage().nbytes() == projector.numel() * 4


def test_bf16_gradients_are_factorised_in_fp32():
    grad = gradient((24, 10))
    basis = basis_for(grad.shape, 4, "reference")
    low = exact_projector(grad.bfloat16(), basis)
    assert low.dtype == torch.float32
    assert torch.equal(low, exact_projector(grad.bfloat16().float(), basis))


def test_the_randomized_projector_hangs_on_its_generator_only():
    grad, basis = gradient((24, 10), decay=0.1), Basis("right", 4)
    torch.manual_seed(1)
    first = randomized_projector(grad, basis, streams(5))
    torch.manual_seed(2)
    assert torch.equal(first, randomized_projector(grad, basis, streams(5)))
