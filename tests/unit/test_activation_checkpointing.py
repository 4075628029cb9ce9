"""Nested checkpointing and its offload: what they keep, that they are undone, what they refuse."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from harness.catalogue.models import BaseModelSpec
from harness.data.batches import MicroBatch
from harness.engine.activation_checkpointing import CheckpointOffload, disable_checkpointing, enable_checkpointing
from harness.engine.loss import summed_loss
from harness.errors import Refused
from harness.settings import TrainSettings
from harness.tensors.decoder import find_decoder
from harness.tensors.loading import load_model
from harness.tensors.storage_tracker import StorageTracker
from tests.records import TRAIN
from tests.unit.test_training import train

BLOCK = TRAIN.model_copy(update={"gradient_checkpointing": True})
NESTED = BLOCK.model_copy(update={"checkpoint_granularity": "nested"})
NUM_BLOCKS, WIDTH, ROWS, LENGTH = 4, 32, 2, 64
INPUT_BYTES = 4 * ROWS * LENGTH * WIDTH


def loaded(folder: Path) -> tuple[Any, Any]:
    model = load_model(folder, "fp32", torch.device("cpu"))
    return model.train(), find_decoder(model, BaseModelSpec(name="tiny", architecture="Llama", folder=folder))


def batch(length: int = LENGTH) -> MicroBatch:
    ids = torch.randint(0, 260, (ROWS, length), generator=torch.Generator().manual_seed(0))
    return MicroBatch(ids, ids, None, ids.numel(), ids[:, 1:].numel())


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_names_stay_and_everything_is_undone(tiny_llama: Path) -> None:
    model, decoder = loaded(tiny_llama)
    names, modules = [n for n, _ in model.named_parameters()], [n for n, _ in model.named_modules()]
    enable_checkpointing(model, decoder, NESTED)
    assert model.is_activation_checkpointing
    assert [n for n, _ in model.named_parameters()] == names
    assert [n for n, _ in model.named_modules()] == modules
    disable_checkpointing(model, decoder, NESTED)
    assert not model.is_activation_checkpointing
    assert not any({"forward", "enable_input_require_grads"} & vars(module).keys() for module in model.modules())


def test_the_context_function_sees_every_second_computation(tiny_llama: Path) -> None:
    model, decoder = loaded(tiny_llama)
    seen: list[str] = []

    @contextmanager
    def noted(what: str):
        seen.append(what)
        yield

    enable_checkpointing(model, decoder, NESTED, lambda: (noted("first"), noted("again")))
    loss = summed_loss(model, batch())
    assert seen == ["first"] * 3 * NUM_BLOCKS  # a block, its attention, its MLP
    loss.backward()
    # Recomputing a block goes through its attention, and stops where the MLP begins: nothing after that is needed.
    assert seen.count("again") == 3 * NUM_BLOCKS
    assert seen.count("first") == 4 * NUM_BLOCKS


def test_nested_checkpoints_hold_less_while_a_block_is_recomputed(tiny_llama: Path) -> None:
    peaks, found = {}, {}
    for settings in (TRAIN, BLOCK, NESTED):
        model, decoder = loaded(tiny_llama)
        enable_checkpointing(model, decoder, settings)
        # The loss is left out: on so small a model its logits are the peak.
        hidden = model.model(input_ids=batch(512).input_ids, use_cache=False).last_hidden_state
        tracker = StorageTracker()
        target = hidden.square().mean()
        del hidden
        with tracker:
            target.backward()
        key = settings.gradient_checkpointing, settings.checkpoint_granularity
        peaks[key], found[key] = tracker.take().peak.num_bytes, gradients(model)
    # What attention keeps: query and its output as wide as the block's input, key and value half as wide.
    assert peaks[True, "block"] - peaks[True, "nested"] >= 3 * 4 * ROWS * 512 * WIDTH
    for name, gradient in found[False, "block"].items():
        assert torch.equal(found[True, "nested"][name], gradient), name


@pytest.mark.parametrize("settings", [BLOCK, NESTED], ids=["block", "nested"])
def test_offloaded_inputs_are_not_on_the_device(settings: TrainSettings, tiny_llama: Path) -> None:
    kept, found = {}, {}
    for offloaded in (False, True):
        model, decoder = loaded(tiny_llama)
        enable_checkpointing(model, decoder, settings)
        offload = CheckpointOffload(decoder.blocks) if offloaded else None
        tracker = StorageTracker()
        with tracker:
            with offload.forward_pass() if offload else nullcontext():
                loss = summed_loss(model, batch())
            events = tracker.take().events
            loss.backward()
        sizes = [event.num_bytes for event in events]
        kept[offloaded] = sizes.count(INPUT_BYTES) - sizes.count(-INPUT_BYTES)
        found[offloaded] = gradients(model)
        if offload:
            assert offload.peak_bytes == NUM_BLOCKS * INPUT_BYTES
            assert offload._held == 0  # all were fetched and let go
    assert kept[False] - kept[True] == NUM_BLOCKS
    assert all(torch.equal(found[True][name], gradient) for name, gradient in found[False].items())


def test_the_hooks_of_the_offload_are_gone_after_the_pass(tiny_llama: Path) -> None:
    model, decoder = loaded(tiny_llama)
    enable_checkpointing(model, decoder, BLOCK)
    offload = CheckpointOffload(decoder.blocks)
    with pytest.raises(KeyError), offload.forward_pass():
        raise KeyError
    assert not any(block._forward_pre_hooks for block in decoder.blocks)
    summed_loss(model, batch()).backward()
    assert offload.peak_bytes == 0


def test_an_offload_that_finds_nothing_is_refused(tiny_llama: Path) -> None:
    model, decoder = loaded(tiny_llama)
    with (
        pytest.raises(Refused, match="found no input of a decoder block"),
        CheckpointOffload(decoder.blocks).forward_pass(),
    ):
        model.model.embed_tokens(batch().input_ids)


def test_blocks_without_children_to_checkpoint_are_refused(tiny_llama: Path) -> None:
    from dataclasses import replace

    model, decoder = loaded(tiny_llama)
    bare = replace(decoder, blocks=(torch.nn.Sequential(torch.nn.Linear(2, 2)),))
    with pytest.raises(Refused, match="finds nothing inside a block"):
        enable_checkpointing(model, bare, NESTED)


@pytest.mark.parametrize(("option", "value"), [("checkpoint_granularity", "nested"), ("offload_checkpoints", True)])
def test_options_of_checkpointing_need_it(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} = .* needs gradient_checkpointing = true"):
        TrainSettings.model_validate(TRAIN.model_dump() | {option: value})


def test_the_bytes_on_the_host_are_recorded(tiny_llama: Path, tokenizer: Any) -> None:
    plain, _, _ = train("full", tiny_llama, tokenizer, gradient_checkpointing=True)
    offloaded, _, _ = train("full", tiny_llama, tokenizer, gradient_checkpointing=True, offload_checkpoints=True)
    assert plain.offloaded_checkpoint_bytes is None
    assert offloaded.offloaded_checkpoint_bytes is not None and offloaded.offloaded_checkpoint_bytes % NUM_BLOCKS == 0
    assert offloaded.curve.loss == plain.curve.loss


def test_a_cuda_tensor_goes_to_pinned_memory_without_waiting(tiny_llama: Path, monkeypatch: Any) -> None:
    _, decoder = loaded(tiny_llama)
    offload = CheckpointOffload(decoder.blocks)
    made: list[dict[str, Any]] = []

    class OnCuda(torch.Tensor):
        is_cuda = True  # type: ignore[assignment]

    empty_like = torch.empty_like

    def watched(tensor: torch.Tensor, **options: Any) -> torch.Tensor:
        made.append(options)
        return empty_like(tensor.as_subclass(torch.Tensor), device=options["device"])

    monkeypatch.setattr(torch, "empty_like", watched)
    hidden = torch.arange(6.0).as_subclass(OnCuda)
    offload._note(decoder.blocks[0], (hidden,), {})
    copy, _ = offload._pack(hidden)
    assert made == [{"device": "cpu", "pin_memory": True}]
    assert torch.equal(offload._unpack((copy, torch.device("cpu"))), torch.arange(6.0))


SHAPE: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
KINDS = {
    "llama": LlamaConfig(**SHAPE),
    "mistral": MistralConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=False),
    "gpt2": GPT2Config(
        vocab_size=264,
        n_embd=WIDTH,
        n_layer=NUM_BLOCKS,
        n_head=4,
        bos_token_id=1,
        eos_token_id=1,
        tie_word_embeddings=False,
    ),
}


PLACES = {"gpt2": {"blocks": "transformer.h", "embedding": "transformer.wte", "final_norm": "transformer.ln_f"}}


def model_of(kind: str) -> tuple[Any, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(KINDS[kind], attn_implementation="eager")
    spec = BaseModelSpec(name=kind, hub_id="nobody/tiny", architecture=type(model).__name__, **PLACES.get(kind, {}))
    return model.train(), find_decoder(model, spec)


def operations(model: Any) -> tuple[int, dict[str, torch.Tensor]]:
    """Return the operations of a pass forward and backward, and its gradients; dropout from a seed."""
    model.zero_grad()
    with torch.random.fork_rng(), FlopCounterMode(display=False) as counter:
        torch.manual_seed(5)
        summed_loss(model, batch()).backward()
    return counter.get_total_flops(), gradients(model)


@pytest.mark.parametrize("lowest", [0, NUM_BLOCKS - 1])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_below_the_lowest_trained_one_are_neither_recomputed_nor_differentiated(kind: str, lowest: int) -> None:
    found = {}
    for way in ("plain", "transformers", "block", "nested"):
        model, decoder = model_of(kind)
        model.requires_grad_(False)
        for module in (*decoder.blocks[lowest:], decoder.head):
            module.requires_grad_(True)
        if way == "transformers":
            model.activation_checkpointing_enable()
        elif way != "plain":
            enable_checkpointing(model, decoder, BLOCK if way == "block" else NESTED)
        found[way] = operations(model)
    plain, theirs, block, nested = (found[way][0] for way in found)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        summed_loss(model, batch())
    forward = counter.get_flop_counts()[f"{type(model).__name__}.{decoder.block_names[lowest]}"]
    of_one = sum(forward.values())
    assert plain < block <= plain + of_one * (NUM_BLOCKS - lowest) < nested
    assert theirs - block >= 1.5 * of_one * lowest  # forward again up to the last product, and back
    for _, gradients_of in found.values():
        assert gradients_of.keys() == found["plain"][1].keys()
        assert all(torch.equal(gradients_of[name], g) for name, g in found["plain"][1].items())
