"""The sliced cross-entropy against torch's own, and against the plain loss of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from harness.catalogue.models import BaseModelSpec
from harness.data.batches import MicroBatch, collate
from harness.data.examples import encode
from harness.engine.context import EngineContext
from harness.engine.loss import SlicedCrossEntropy, loss_function, passed_through, sliced_summed_loss, summed_loss
from harness.engine.training import mean_loss
from harness.errors import Refused
from harness.tensors.decoder import find_decoder
from harness.tensors.loading import load_model
from harness.tensors.storage_tracker import StorageTracker
from tests.records import TRAIN
from tests.unit.test_training import ROWS

COLUMNS = 64
VOCABULARY = 260  # no multiple of COLUMNS


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).requires_grad_()


@pytest.mark.parametrize("columns", [1, 3, 4, 10, 100])
def test_gradients_are_the_differences_of_the_loss(columns: int) -> None:
    targets = torch.tensor([0, 9, 3, 2, 9, 4])
    assert torch.autograd.gradcheck(
        lambda h, weight: SlicedCrossEntropy.apply(h, weight, targets, columns), (numbers(6, 5), numbers(10, 5, seed=1))
    )


@pytest.mark.parametrize("columns", [3, 10])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_slices_give_torchs_cross_entropy(columns: int, dtype: torch.dtype) -> None:
    targets = torch.tensor([0, 9, 3, 2, 9, 4])
    found, expected = [], []
    for results, sliced in ((found, True), (expected, False)):
        h, W = numbers(6, 5, dtype=dtype), numbers(10, 5, seed=1, dtype=dtype)
        wide = torch.promote_types(dtype, torch.float32)
        plain = functional.cross_entropy((h @ W.t()).to(wide), targets, reduction="sum")
        loss = SlicedCrossEntropy.apply(h, W, targets, columns) if sliced else plain
        (loss / 7).backward()
        assert h.grad is not None and W.grad is not None
        assert (loss.dtype, h.grad.dtype, W.grad.dtype) == (wide, dtype, dtype)
        results += [loss.detach(), h.grad, W.grad]
    # dh is rounded once a slice in the weights' dtype; the loss and dW are not rounded more often than in the plain way
    near = {} if dtype != torch.bfloat16 else {"rtol": 2**-7, "atol": 2**-8}
    for name, ours, theirs in zip(("loss", "dh", "dW"), found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, msg=name, **near)


def test_large_logits_neither_overflow_nor_vanish() -> None:
    h, W = (1e4 * numbers(3, 4, dtype=torch.float32)).detach(), numbers(9, 4, seed=1, dtype=torch.float32)
    targets = torch.tensor([1, 8, 4])
    loss = SlicedCrossEntropy.apply(h, W, targets, 2)
    assert torch.allclose(loss, functional.cross_entropy(h @ W.t(), targets, reduction="sum"))


def test_many_slices_of_large_logits_keep_the_precision_of_fp32() -> None:
    h, W = 10 * numbers(64, 32, dtype=torch.float32), numbers(600, 32, seed=1, dtype=torch.float32)
    targets = (h @ W.t()).argmax(1)
    exact = functional.cross_entropy((h @ W.t()).double(), targets, reduction="sum")
    loss = SlicedCrossEntropy.apply(h, W, targets, 3)
    # A running log-sum-exp, rounded at the size of the logits, would be 1.2e-6 away.
    assert float((loss - exact).abs().detach()) / 64 < 8e-7


def loaded(folder: Path, dtype: str = "fp32") -> tuple[Any, Any]:
    model = load_model(folder, dtype, torch.device("cpu"))
    return model, find_decoder(model, BaseModelSpec(name="tiny", architecture="LlamaForCausalLM", folder=folder))


def answers(tokenizer: Any, rows: int = 3) -> MicroBatch:
    return collate([encode(row, tokenizer, TRAIN) for row in ROWS[:rows]], pad_id=257)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("frozen", [(), ("head",), ("blocks", "embedding", "final_norm")])
def test_a_models_loss_and_gradients_are_the_plain_ones(
    tied: bool, frozen: tuple[str, ...], tiny_llama: Path, tiny_llama_tied: Path, tokenizer: Any
) -> None:
    if tied and frozen:
        pytest.skip("the head is the embedding")
    results = []
    for sliced in (False, True):
        model, decoder = loaded(tiny_llama_tied if tied else tiny_llama)
        for role in frozen:
            for part in decoder.blocks if role == "blocks" else (getattr(decoder, role),):
                part.requires_grad_(False)
        batch = answers(tokenizer)
        assert 0 < batch.num_trained_tokens < batch.labels[:, 1:].numel()  # prompts and padding carry no loss
        loss = (
            sliced_summed_loss(model, batch, head=decoder.head, columns=COLUMNS)
            if sliced
            else summed_loss(model, batch)
        )
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (expected, gradients), (found, ours) = results
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)
    assert ours.keys() == gradients.keys() and ours
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_tokens_without_loss_reach_no_product(tiny_llama: Path, tokenizer: Any, monkeypatch: Any) -> None:
    model, decoder = loaded(tiny_llama)
    batch, seen = answers(tokenizer), []
    apply = SlicedCrossEntropy.apply

    def watched(h: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, columns: int) -> torch.Tensor:
        seen.append((h.shape, targets))
        return apply(h, weight, targets, columns)

    monkeypatch.setattr(SlicedCrossEntropy, "apply", watched)
    sliced_summed_loss(model, batch, head=decoder.head, columns=COLUMNS)
    labels = batch.labels[:, 1:].flatten()
    ((shape, targets),) = seen
    assert shape == (batch.num_trained_tokens, 32)
    assert torch.equal(targets, labels[labels != -100])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_nothing_as_large_as_the_logits_is_ever_there(dtype: str, tiny_llama: Path, tokenizer: Any) -> None:
    ids = torch.randint(0, VOCABULARY, (4, 64), generator=torch.Generator().manual_seed(0))
    batch = MicroBatch(ids, ids, None, ids.numel(), ids[:, 1:].numel())
    largest = {}
    for columns in (None, 16):
        model, decoder = loaded(tiny_llama, dtype)
        train = TRAIN.model_copy(update={"loss_chunk_columns": columns, "dtype": dtype})
        loss_of = loss_function(model, EngineContext(seed=1, num_steps=1, train=train, decoder=decoder))
        tracker = StorageTracker()
        with tracker:
            loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
        largest[columns] = max(event.num_bytes for event in tracker.take().events)
    tokens = batch.num_trained_tokens
    assert largest[None] >= 4 * tokens * VOCABULARY
    assert largest[16] <= 4 * ids.numel() * 64  # what an MLP makes


def test_held_out_loss_goes_the_way_of_training(tiny_llama: Path, tokenizer: Any) -> None:
    means = []
    for columns in (None, COLUMNS):
        model, decoder = loaded(tiny_llama)
        train = TRAIN.model_copy(update={"loss_chunk_columns": columns})
        context = EngineContext(seed=1, num_steps=1, train=train, decoder=decoder)
        tracker = StorageTracker()
        with tracker:
            means.append(mean_loss(model, [answers(tokenizer, 8)], context)[0])
        sizes = {event.num_bytes for event in tracker.take().events}
        num_positions = answers(tokenizer, 8).labels[:, 1:].numel()
        assert (4 * num_positions * VOCABULARY in sizes) == (columns is None)
    assert means[1] == pytest.approx(means[0], rel=1e-6)


def test_the_head_is_itself_again_also_after_an_error(tiny_llama: Path) -> None:
    _, decoder = loaded(tiny_llama)
    with pytest.raises(KeyError), passed_through(decoder.head):
        raise KeyError
    hidden = torch.zeros(1, 2, 32)
    assert decoder.head(hidden).shape == (1, 2, VOCABULARY)
    assert "forward" not in vars(decoder.head)


def test_a_head_that_slices_would_not_give_is_refused(tiny_llama: Path, tokenizer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    train = TRAIN.model_copy(update={"loss_chunk_columns": COLUMNS})
    model, decoder = loaded(tiny_llama)
    decoder.head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY))
    context = EngineContext(seed=1, num_steps=1, train=train, decoder=decoder)
    with pytest.raises(Refused, match="one linear layer without bias and without an adapter"):
        loss_function(model, context)
    model, decoder = loaded(tiny_llama)
    context = EngineContext(seed=1, num_steps=1, train=train, decoder=decoder)
    loss_function(get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])), context)
    wrapped = get_peft_model(loaded(tiny_llama)[0], LoraConfig(r=2, target_modules=["lm_head"]))
    context.decoder = find_decoder(
        model, BaseModelSpec(name="tiny", architecture="LlamaForCausalLM", folder=tiny_llama)
    )
    with pytest.raises(Refused, match="without an adapter"):
        loss_function(wrapped, context)


def test_a_model_that_scales_its_logits_is_refused() -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    shape: dict[str, Any] = {"vocab_size": 30, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = GraniteForCausalLM(GraniteConfig(**shape, num_attention_heads=2, num_key_value_heads=2, logits_scaling=2.0))
    ids = torch.zeros((1, 4), dtype=torch.int64)
    with pytest.raises(Refused, match="changes the logits after its head"):
        sliced_summed_loss(model, MicroBatch(ids, ids, None, 4, 3), head=model.lm_head, columns=8)
    assert "forward" not in vars(model.lm_head)
