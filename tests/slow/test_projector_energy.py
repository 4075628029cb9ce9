"""What the default projector keeps of real gradients: one batch of real rows, one backward pass, seven kinds of matrix.

The exact projector is the yardstick: no projector of its rank keeps more of a gradient's energy.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from harness.catalogue.models import load_models
from harness.catalogue.resolved import packaged_catalogue
from harness.data.batches import TrainData
from harness.data.packaged import rows_place
from harness.data.rows import load_rows
from harness.methods._projection import Basis, basis_for, captured_energy, exact_projector, randomized_projector
from harness.preparing.assets import converted_model_place
from harness.tensors.decoder import find_decoder
from harness.tensors.loading import load_model, load_tokenizer
from tests.conftest import needed
from tests.records import TRAIN

pytestmark = pytest.mark.slow

BLOCKS = (0, 7, 15, 22, 29)
KINDS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
RANKS = (32, 128)
SETTINGS = TRAIN.model_copy(
    update={"data": "packaged-commonsense", "loss_on": "all", "packing": True, "sequence_length": 256, "batch_size": 8}
)
"""2,048 trained tokens: on a few answer tokens a gradient has so low a rank that any projector keeps all of it."""


@pytest.fixture(scope="module")
def gradients() -> dict[str, torch.Tensor]:
    """Gradients of the loss on the first batch of a run, by the name of the matrix."""
    spec = load_models()["smollm2-135m"]
    needed(rows_place())
    return _gradients(needed(converted_model_place(spec)))


def _gradients(folder: Path) -> dict[str, torch.Tensor]:
    model = load_model(folder, "fp32", torch.device("cpu")).requires_grad_(False)
    decoder = find_decoder(model, load_models()["smollm2-135m"])
    weights = {
        f"{block}.{name}": module.weight.requires_grad_()
        for block in BLOCKS
        for name, module in decoder.blocks[block].named_modules()
        if isinstance(module, nn.Linear)
    }
    rows = load_rows(packaged_catalogue().dataset(SETTINGS.data), "train")
    (batch,) = next(TrainData(rows, load_tokenizer(folder), SETTINGS, 1).step_batches())
    model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
    return {name: weight.grad for name, weight in weights.items() if weight.grad is not None}


def test_the_default_projector_keeps_99_percent_of_what_the_exact_one_keeps(
    gradients: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(gradients) == len(BLOCKS) * len(KINDS) >= 20
    assert {name.rpartition(".")[2] for name in gradients} == KINDS
    assert all(torch.isfinite(grad).all() and grad.any() for grad in gradients.values())
    shares: dict[int, dict[str, float]] = {rank: {} for rank in RANKS}
    for number, (name, grad) in enumerate(gradients.items()):
        widest = basis_for(grad.shape, max(RANKS), "reference")
        exact = exact_projector(grad, widest)
        for rank in RANKS:
            basis = Basis(widest.side, rank)
            best = exact[:rank] if basis.side == "right" else exact[:, :rank]
            ours = randomized_projector(grad, basis, torch.Generator().manual_seed(number))
            assert ours.shape == best.shape
            shares[rank][name] = captured_energy(grad, ours, basis.side) / captured_energy(grad, best, basis.side)
    with capsys.disabled():
        for rank, share in shares.items():
            worst = min(share, key=lambda name: share[name])
            print(f"\nrank {rank}: worst of {len(share)} gradient matrices {share[worst]:.4f}, of {worst}")
    for share in shares.values():
        # Nothing keeps more than the exact projector; one that is the exact one by accident would hide a slip.
        assert all(0.99 <= value <= 1.0 + 1e-5 for value in share.values())
        assert min(share.values()) < 1.0
