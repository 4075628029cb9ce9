"""Several processes look at a model that none of them holds: looks change nothing, and losses are those of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.calibration.tiny import MODEL, TinyRun
from harness.engine.ranks import ALONE, Ranks
from harness.engine.training import mean_loss
from harness.errors import HarnessError, Refused
from harness.evaluation.language_model import HarnessLM
from harness.record import Record
from harness.tensors.decoder import find_decoder
from harness.tensors.loading import build_model
from harness.tensors.seeding import seeded_globally
from harness.tensors.sharded import shard, whole
from tests.executing import evaluated_task, executed
from tests.ranks import on_ranks
from tests.sharded_runs import STEPS, Case, all_of, built

CPU = torch.device("cpu")
LOOKED: dict[str, Case] = {
    "full": Case("full"),
    "lisa": Case("lisa", train={"dtype": "bf16"}),
    "lora": Case("lora", {"lora_dropout": 0.2}),
    "galore, sliced": Case("galore", train={"loss_chunk_columns": 100, "gradient_checkpointing": True}),
}


def look(run: TinyRun) -> float:
    return mean_loss(run.loop.model, [run.loop.placed(batch) for batch in run.batches[:2]], run.loop.context)[0]


def state(run: TinyRun) -> list[Any]:
    """Return which objects parameters are, which of them require gradients, and which the optimizer has."""
    named = [(name, id(p), p.requires_grad) for name, p in run.loop.model.named_parameters()]
    return [named, [[id(p) for p in group["params"]] for group in run.loop.optimizer.param_groups]]


def looked_at(ranks: Ranks, case: Case, looks: bool) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Return looks, losses and weights of a run that is looked at before its first step and between steps."""
    run, found, losses = built(ranks, case), [], []
    for _ in range(STEPS // 2):
        if looks:
            before = state(run), all_of(run)
            found.append(look(run))
            after = state(run), all_of(run)
            assert before[0] == after[0] and all(torch.equal(before[1][name], p) for name, p in after[1].items())
        losses = run.take(2)
    return found, list(losses), all_of(run)


def looks_of(ranks: Ranks) -> dict[tuple[str, bool], Any]:
    return {(name, looks): looked_at(ranks, case, looks) for name, case in LOOKED.items() for looks in (True, False)}


@pytest.fixture(scope="module")
def on_two() -> dict[tuple[str, bool], Any]:
    return on_ranks(2, looks_of, timeout=400)[0]


@pytest.mark.parametrize("name", LOOKED)
def test_a_look_at_the_held_out_loss_changes_nothing(name: str, on_two: dict[tuple[str, bool], Any]) -> None:
    (found, losses, weights), (_, others, unseen) = on_two[name, True], on_two[name, False]
    assert losses == others and all(torch.equal(weights[key], p) for key, p in unseen.items())
    expected = looked_at(ALONE, LOOKED[name], looks=True)
    assert (found, losses) == expected[:2] and len(set(found)) == len(found)
    assert all(torch.equal(weights[key], p) for key, p in expected[2].items())


def scaled_head(ranks: Ranks) -> str:
    """Return how a sliced loss is refused of a model that scales what its head returns."""
    run = built(ranks, LOOKED["galore, sliced"])
    model: Any = run.loop.model
    model.register_forward_hook(lambda module, args, output: setattr(output, "logits", output.logits * 2))
    try:
        look(run)
    except Refused as error:
        return str(error)
    return ""


def test_a_model_that_changes_its_logits_is_refused_on_every_process() -> None:
    one, other = on_ranks(2, scaled_head)
    assert one == other and "changes the logits after its head" in one


UNEVEN = MODEL.model_copy(update={"shape": MODEL.shape.model_copy(update={"vocab_size": 251}) if MODEL.shape else None})


def uneven(ranks: Ranks, architecture: str, tied: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return gathered weights and logits of a model whose sizes the number of processes does not divide."""
    assert UNEVEN.shape is not None
    shape = UNEVEN.shape.model_copy(update={"tied_head": tied})
    spec = UNEVEN.model_copy(update={"architecture": architecture, "shape": shape})
    with seeded_globally(1, "weights"):
        model = build_model(spec, "fp32", CPU)
    if ranks.several:
        shard(model, find_decoder(model, spec), ranks.mesh)
    with torch.no_grad():
        logits = model(input_ids=torch.arange(24).reshape(2, 12)).logits
    return {name: whole(p.detach()).clone() for name, p in model.named_parameters()}, logits


ARCHITECTURES = [("LlamaForCausalLM", False), ("MistralForCausalLM", False), ("Qwen2ForCausalLM", True)]


def all_uneven(ranks: Ranks) -> list[Any]:
    return [uneven(ranks, *one) for one in ARCHITECTURES]


@pytest.mark.parametrize("number", [2, pytest.param(3, marks=pytest.mark.long)])
def test_sizes_that_the_number_of_processes_does_not_divide_give_the_same_logits(number: int) -> None:
    expected = all_uneven(ALONE)
    for found in on_ranks(number, all_uneven):
        for (weights, logits), (others, wanted) in zip(found, expected, strict=True):
            assert torch.equal(logits, wanted)
            assert all(torch.equal(weights[name], p) for name, p in others.items())


def out_of_memory(ranks: Ranks, folder: Path) -> str:
    """Return what comes of memory that runs out in one process, whose budget of tokens must not change alone."""
    from harness.tensors.loading import load_model, load_tokenizer

    model: Any = load_model(folder, "fp32", CPU)
    shard(model, find_decoder(model, MODEL), ranks.mesh)
    scorer = HarnessLM(model, load_tokenizer(folder), device="cpu", batch_tokens=64)

    def scarce(*_: Any, **__: Any) -> None:
        raise MemoryError("scarce")

    scorer._score_batch = scarce  # type: ignore[method-assign, assignment]
    try:
        scorer._loglikelihood_tokens([("", [1, 2], [3, 5]), ("", [1, 2], [4, 5])])  # in one row that could be cut
    except MemoryError as error:
        return f"{error} {scorer.batch_tokens}"
    return ""


def test_a_budget_of_tokens_is_not_halved_by_one_process_alone(tiny_llama: Path) -> None:
    assert on_ranks(2, out_of_memory, tiny_llama) == ["scarce 64"] * 2


def failing(ranks: Ranks, tasks: dict[Path, str], where: tuple[int, ...]) -> list[str]:
    """Execute tasks whose evaluation fails in some of the processes."""
    from harness.evaluation import scoring

    def fails(model: Any, *_: Any, **__: Any) -> None:
        if ranks.rank in where:
            raise HarnessError("no rows")
        model(input_ids=torch.arange(8).reshape(1, 8))

    scoring.evaluate = fails  # type: ignore[assignment]
    return executed(ranks, tasks)


@pytest.mark.parametrize("label", ["full", pytest.param("lora", marks=pytest.mark.long)])
def test_an_evaluation_that_fails_in_all_processes_leaves_the_weights(
    label: str, tiny_llama: Path, tmp_path: Path
) -> None:
    task = evaluated_task(label, tiny_llama, tmp_path).model_copy(update={"gpus_per_run": 2})
    told = {tmp_path / "work": task.model_dump_json()}
    record = Record.model_validate_json(on_ranks(2, failing, told, (0, 1))[0][0])
    assert (record.status, record.weights, record.weights_held) == ("failed", "weights", True), record.weights_error
    assert list((tmp_path / "work" / "weights").rglob("*.safetensors"))
