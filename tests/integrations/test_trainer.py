"""Every registered label inside a Trainer: the weights of the engine's own loop, to the bit, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from harness.data.examples import Example
from harness.engine.stepping import Stepping
from harness.engine.training import TrainingLoop
from harness.errors import HarnessError, Refused
from harness.integrations.trainer_rows import TrainerRows
from harness.integrations.transformers import Prepared
from harness.method import METHODS, Method
from harness.plugin import MethodConfig, OptimizerMethod
from harness.tensors.stepwise import Stepwise
from tests.trainer import (
    BATCH,
    OF_EACH_KIND,
    SEED,
    STEPS,
    TRAINED,
    collate,
    examples,
    features,
    largest_difference,
    own_loop,
    prepared,
    tiny_model,
    trainer_of,
    training_arguments,
    weights,
)

SAVED = 3
"""Step of the checkpoint from which a second run goes on: neither the first of a draw nor of a projection."""


def in_a_trainer(
    label: str,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    rows: list[Example] | None = None,
    settings: dict[str, Any] | None = None,
    seed: int | None = None,
    given: dict[str, Any] | None = None,
    **changes: Any,
) -> Prepared:
    """Return what was prepared once a Trainer has trained it.

    ``given`` goes to the Trainer, ``changes`` to its arguments.
    """
    args = training_arguments(folder, **changes)
    made = prepared(label, args, dtype, settings=settings or {}, seed=seed)
    trainer_of(made, args, rows, **given or {}).train()
    return made


def proof_of(method: Method) -> dict[str, Any]:
    """Return what a method says of itself, but for what took time."""
    return {key: value for key, value in method.proof().items() if key != "refresh_seconds"}


Run = tuple[Prepared, dict[str, torch.Tensor], Path]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Return by label what a Trainer trained in fp32, the weights and the folder with a checkpoint; trained once."""
    runs: dict[str, Run] = {}

    def of(label: str) -> Run:
        if label not in runs:
            folder = tmp_path_factory.mktemp(label)
            made = in_a_trainer(label, folder, save_strategy="steps", save_steps=SAVED)
            runs[label] = made, weights(made.model), folder / f"checkpoint-{SAVED}"
        return runs[label]

    return of


@pytest.mark.parametrize("label", TRAINED)
def test_a_label_ends_in_the_weights_of_its_own_loop(label: str, run_of: Callable[[str], Run], tmp_path: Path) -> None:
    made, found, _ = run_of(label)
    loop = own_loop(label, made)
    assert largest_difference(found, weights(loop.model)) == 0.0
    assert made.run.method.state_dict() == loop.method.state_dict()
    assert proof_of(made.run.method) == proof_of(loop.method)
    assert made.optimizer.state_bytes() == loop.optimizer.state_bytes()
    if made.run.method.samples_blocks:
        assert len({tuple(draw["blocks"]) for draw in loop.method.proof()["draws"]}) > 1  # type: ignore
    at_first = prepared(label, training_arguments(tmp_path))
    moved = largest_difference(found, weights(at_first.model))
    assert moved > 1e-3, "equal weights say nothing where nothing was trained"


@pytest.mark.parametrize("label", TRAINED)
def test_in_bf16_accumulated_checkpointed_and_updated_in_backward_alike(label: str, tmp_path: Path) -> None:
    changes = {"gradient_accumulation_steps": 2, "activation_checkpointing": True}
    rows = examples(prompts=True)
    in_backward = {"update_in_backward": True}
    made = in_a_trainer(label, tmp_path, torch.bfloat16, rows=rows, settings=in_backward, **changes)
    assert made.run.method.config.update_in_backward
    loop = own_loop(label, made, torch.bfloat16, rows)
    assert largest_difference(weights(made.model), weights(loop.model)) == 0.0
    assert proof_of(made.run.method) == proof_of(loop.method)


@pytest.mark.parametrize("label", TRAINED)
def test_a_run_that_goes_on_from_a_checkpoint_ends_in_the_same_weights(
    label: str, run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    whole, wanted, checkpoint = run_of(label)
    args = training_arguments(tmp_path)
    rest = prepared(label, args)
    trainer_of(rest, args).train(resume_from_checkpoint=str(checkpoint))
    assert largest_difference(weights(rest.model), wanted) == 0.0
    assert rest.run.method.state_dict() == whole.run.method.state_dict()
    assert rest.optimizer.state_bytes() == whole.optimizer.state_bytes()


@pytest.mark.parametrize("label", ["full", "lora", "owlore"])
def test_another_seed_gives_other_weights(label: str, run_of: Callable[[str], Run], tmp_path: Path) -> None:
    other = weights(in_a_trainer(label, tmp_path, seed=SEED + 1).model)
    apart = largest_difference(run_of(label)[1], other)
    assert apart == 0.0 if label == "full" else apart > 1e-3  # full draws nothing: the seed is the method's


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("label", OF_EACH_KIND)
def test_clipping_is_the_trainers_and_nothing_else_differs(label: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Its norm adds up in another order, in bf16 in the precision of the gradients."""
    apart: list[float] = []

    def clip_as_a_trainer(loop: TrainingLoop) -> None:
        def clip(max_norm: float) -> float:
            gradients = [p.grad for p in loop.model.parameters() if p.grad is not None]
            exact = float(torch.stack([g.double().norm() for g in gradients]).norm())
            norm = float(nn.utils.clip_grad_norm_(loop.model.parameters(), max_norm))
            apart.append(abs(norm / exact - 1.0))
            return norm

        loop.stepping._clip = clip  # type: ignore[method-assign]

    made = in_a_trainer(label, tmp_path, dtype, max_grad_norm=0.1)
    loop = own_loop(label, made, dtype, before=clip_as_a_trainer)
    assert largest_difference(weights(made.model), weights(loop.model)) == 0.0
    of_adapters = dtype == torch.float32 or label in ("lora", "ist")  # which are fp32 on bf16 weights, too
    assert len(apart) == STEPS and max(apart) < (2**-21 if of_adapters else 2**-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("label", OF_EACH_KIND)
def test_padded_rows_keep_their_mask_and_nothing_else_differs(label: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """The engine leaves the mask of right padding out where that is exact; kernels then round otherwise."""
    rows = examples(padded=True, prompts=True)
    made = in_a_trainer(label, tmp_path, dtype, rows=rows)

    def keep_the_mask(loop: TrainingLoop) -> None:
        loop._masked = True

    loop = own_loop(label, made, dtype, rows, before=keep_the_mask)
    difference = largest_difference(weights(made.model), weights(loop.model))
    assert difference == 0.0


@pytest.mark.parametrize("label", ["lisa", "galore-layerwise", "lora"])
def test_the_last_step_of_an_epoch_may_have_fewer_micro_batches(label: str, tmp_path: Path) -> None:
    rows = examples(prompts=True)
    assert len(rows) // BATCH % 3 == 2
    made = in_a_trainer(label, tmp_path, rows=rows, gradient_accumulation_steps=3)
    assert largest_difference(weights(made.model), weights(own_loop(label, made, rows=rows).model)) == 0.0


@pytest.mark.parametrize("label", ["grass", "lisa-d", "galore", "badam"])
def test_state_lies_after_every_step_where_it_does_in_the_own_loop(label: str, tmp_path: Path) -> None:
    held: list[int] = []

    class AtEnd(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            held.append(made.optimizer.state_bytes()["device"])

    args = training_arguments(tmp_path)
    made = prepared(label, args)
    trainer_of(made, args, callbacks=[made.callback, AtEnd()]).train()
    curve = own_loop(label, made).result().curve
    assert held == list(curve.optimizer_state_bytes)


def test_an_evaluation_between_steps_changes_nothing(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    for label in ("lora", "ist", "galore-layerwise"):
        eval_rows = features(examples(padded=True))
        evaluated = in_a_trainer(
            label, tmp_path, given={"eval_dataset": eval_rows}, eval_strategy="steps", eval_steps=2, eval_on_start=True
        )
        assert largest_difference(weights(evaluated.model), run_of(label)[1]) == 0.0


@pytest.mark.parametrize("sampling", ["random", "sequential"])
def test_a_probe_sees_the_rows_with_which_training_begins(
    sampling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[torch.Tensor] = []
    real = Stepping.probe

    def probe(self: Stepping, index: int, micro_batches: Any) -> None:
        probed.extend(batch.input_ids for batch in micro_batches)
        real(self, index, micro_batches)

    monkeypatch.setattr(Stepping, "probe", probe)
    seen: list[torch.Tensor] = []
    args = training_arguments(tmp_path, train_sampling_strategy=sampling, gradient_accumulation_steps=2)
    made = prepared("grass", args)
    trainer = trainer_of(made, args)
    compute_loss = trainer.compute_loss

    def seeing(model: Any, inputs: Any, **kwargs: Any) -> Any:
        seen.append(inputs["input_ids"])
        return compute_loss(model, inputs, **kwargs)

    trainer.compute_loss = seeing
    trainer.train()
    assert len(probed) == 4 and len(seen) == 2 * STEPS
    assert all(torch.equal(one, other) for one, other in zip(probed, seen, strict=False))
    first = torch.tensor([row.ids for row in examples()[:BATCH]])
    assert torch.equal(seen[0], first) == (sampling == "sequential")


def test_rows_that_are_looked_at_move_no_generator() -> None:
    loader = DataLoader(features(examples()), batch_size=BATCH, shuffle=True, collate_fn=collate)  # type: ignore
    before = torch.get_rng_state(), random.getstate()
    rows = TrainerRows(loader, SEED)
    looked_at = rows.first(3)
    rows.stream_batch("a stream", 1, 4)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    for batch, seen in zip(looked_at, loader, strict=False):
        assert torch.equal(batch.input_ids, seen["input_ids"])


@pytest.mark.parametrize("label", TRAINED)
def test_what_is_finished_is_the_plain_model_with_what_was_trained(
    label: str, run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    from transformers import LlamaForCausalLM

    made, _, _ = run_of(label)
    ids = torch.tensor([row.ids for row in examples()[:4]])
    with torch.no_grad():
        wanted = made.model.eval()(input_ids=ids).logits
        finished = made.finish()
        found = finished(input_ids=ids).logits
        before = tiny_model()(input_ids=ids).logits
    assert type(finished) is LlamaForCausalLM
    assert "forward" not in vars(finished)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert float((found - before).abs().max()) > 1e-2
    finished.save_pretrained(tmp_path)
    with torch.no_grad():
        loaded = LlamaForCausalLM.from_pretrained(tmp_path).eval()(input_ids=ids).logits
    assert torch.equal(loaded, found)


@pytest.mark.parametrize("label", ["lora", "dora", "pissa", "olora"])
def test_an_adapter_is_saved_for_the_base_weights_as_they_were(label: str, tmp_path: Path) -> None:
    from peft import PeftModel

    made = in_a_trainer(label, tmp_path / "out")
    ids = torch.tensor([row.ids for row in examples()[:4]])
    made.adapter().save_pretrained(tmp_path / "adapter")  # type: ignore[operator]
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter").eval()
    with torch.no_grad():
        wanted, found = (model(input_ids=ids).logits for model in (made.model.eval(), loaded))
        before = tiny_model()(input_ids=ids).logits
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert float((found - before).abs().max()) > 1e-2


def test_a_label_without_an_adapter_has_none_to_save(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="label 'lisa' has no adapter"):
        prepared("lisa", training_arguments(tmp_path)).adapter()


@pytest.mark.parametrize("label", OF_EACH_KIND)
def test_under_autocast_nothing_but_the_forward_pass_differs(label: str, tmp_path: Path) -> None:
    def under_autocast(loop: TrainingLoop) -> None:
        forward = loop.model.forward

        def covered(**given: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                output = forward(**given)
            output.logits = output.logits.float()
            return output

        loop.model.forward = covered

    made = in_a_trainer(label, tmp_path, bf16=True)
    trained = weights(made.model)
    assert largest_difference(trained, weights(own_loop(label, made, before=under_autocast).model)) == 0.0
    assert largest_difference(trained, weights(own_loop(label, made).model)) > 0.0
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}
    assert "forward" in vars(made.model), "accelerate covers it no longer, so there is nothing to take back"
    finished = made.finish()
    assert "forward" not in vars(finished)


class MomentumConfig(MethodConfig):
    momentum: float


class Momentum(OptimizerMethod):
    """A plug-in around an optimizer of torch.optim, as docs/adding-a-method.md has it."""

    Config = MomentumConfig
    config: MomentumConfig

    def optimizer(self, named: Any, learning_rate: float, context: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for _, p in named], lr=learning_rate, momentum=self.config.momentum)


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_plug_in_around_an_optimizer_of_torch(
    in_backward: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(METHODS, "_classes", {**METHODS._classes, "momentum": Momentum})
    begun: list[int] = []
    ended: list[int] = []  # by zero_grad, which a Trainer does not call
    zero_grad = Stepwise.zero_grad

    def ending(self: Stepwise, set_to_none: bool = True) -> None:
        ended.append(begun[-1])
        zero_grad(self, set_to_none)

    monkeypatch.setattr(Stepwise, "begin_step", lambda self, step: begun.append(step))
    monkeypatch.setattr(Stepwise, "zero_grad", ending)
    settings = {"update_in_backward": in_backward, "momentum": 0.5 * in_backward}  # without it there is no state
    saved = {"save_strategy": "steps", "save_steps": 3}
    made = in_a_trainer("momentum", tmp_path, settings=settings, lr_scheduler_type="cosine", **saved)
    assert begun == ended == list(range(STEPS))
    loop = own_loop("momentum", made)
    assert largest_difference(weights(made.model), weights(loop.model)) == 0.0
    args = training_arguments(tmp_path / "rest", lr_scheduler_type="cosine")
    rest = prepared("momentum", args, settings=settings)
    begun.clear()
    trainer_of(rest, args).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert begun == list(range(3, STEPS))
    assert largest_difference(weights(rest.model), weights(loop.model)) == 0.0


def neox() -> Any:
    """Return a GPT-NeoX, whose parts are called otherwise than a LLaMA's."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return GPTNeoXForCausalLM(
            GPTNeoXConfig(**shape, vocab_size=64, max_position_embeddings=64, attention_dropout=0.0, hidden_dropout=0.0)
        )


NEOX = {
    "blocks": "gpt_neox.layers",
    "embedding": "gpt_neox.embed_in",
    "final_norm": "gpt_neox.final_layer_norm",
    "head": "lm_head",
}


@pytest.mark.parametrize("label", ["lisa", "galore"])
def test_a_model_of_another_architecture_is_looked_at(label: str, tmp_path: Path) -> None:
    args = training_arguments(tmp_path)
    made = prepared(label, args, model=neox())
    assert made.run.context.decoder.block_names[0] == "gpt_neox.layers.0"
    trainer_of(made, args).train()
    loop = own_loop(label, made, model=neox(), places=NEOX)
    assert largest_difference(weights(made.model), weights(loop.model)) == 0.0
    with pytest.raises(HarnessError, match=r"there is no module 'gpt_neox\.blocks' .* argument parts of prepare"):
        prepared(label, args, model=neox(), parts={"blocks": "gpt_neox.blocks"})
    with pytest.raises(HarnessError, match="there is no part 'block'"):
        prepared(label, args, model=neox(), parts={"block": "gpt_neox.layers"})
    said = prepared(label, args, model=neox(), parts=NEOX)
    assert said.run.context.decoder.block_names == made.run.context.decoder.block_names


@pytest.mark.parametrize("label", ["lisa", "lora", "galore-layerwise"])
def test_a_head_that_is_the_embedding(label: str, tmp_path: Path) -> None:
    args = training_arguments(tmp_path, save_strategy="steps", save_steps=3)
    made = prepared(label, args, model=tiny_model(tie_word_embeddings=True))
    trainer_of(made, args).train()
    found = weights(made.model)
    loop = own_loop(label, made, model=tiny_model(tie_word_embeddings=True))
    assert largest_difference(found, weights(loop.model)) == 0.0
    rest = prepared(label, args, model=tiny_model(tie_word_embeddings=True))
    trainer_of(rest, args).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert largest_difference(found, weights(rest.model)) == 0.0
