"""The training of one run: rows, block scores, the loop, the losses beside it, and the proof."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from harness.data.batches import MicroBatch, RowCounts, TrainData, general_batches, validation_batches
from harness.data.drawn import run_rows
from harness.engine.activation_checkpointing import disable_checkpointing, enable_checkpointing
from harness.engine.block_scores import block_scores, cached_block_scores
from harness.engine.checkpoint import Checkpoints
from harness.engine.context import EngineContext
from harness.engine.ranks import ALONE
from harness.engine.run_parts import RunParts, conversation_of
from harness.engine.statements import declaration_of, proof_of, report_of
from harness.engine.stepping import Diverged
from harness.engine.together import phases_together, trained_together
from harness.engine.training import TrainingLoop, mean_loss
from harness.errors import HarnessError, Refused
from harness.method import BlockScoreRequest, Decoder, Method
from harness.settings import TrainSettings
from harness.tensors.decoder import model_checksums
from harness.tensors.sharded import shard


def train(run: RunParts, method: Method, model: nn.Module, tokenizer: Any, decoder: Decoder) -> nn.Module:
    """Train ``model`` and return what is evaluated."""
    spec, meter = run.task.spec, run.meter
    settings = spec.train
    assert settings is not None
    with meter.phase("data"):
        data, held_out = _data(run, settings, model, tokenizer)
        general = _general_text(run, tokenizer, settings)
    context = EngineContext(
        seed=spec.seed,
        num_steps=data.num_steps(spec.max_steps),
        train=settings,
        decoder=decoder,
        block_scores=_block_scores(run, method, model, tokenizer, decoder),
        stream_rows=lru_cache(maxsize=1)(data.stream_batch),  # a method asks several times for the same rows
        ranks=run.ranks,
    )
    with meter.phase("prepare"):
        run.progress("preparing", 0, None)
        enable_checkpointing(model, decoder, settings)
        model = method.prepare(model, context)
        if (asked := method.inference_needed()) is not None:
            data.refuse_more_rows_at_once(asked.num_rows)
        if run.ranks.several:
            decoder = shard(model, decoder, run.ranks.mesh, method.cut_by_columns(model, context))
            context = context.with_decoder(decoder)
        optimizer = method.build_optimizer(model, context)
        loop = TrainingLoop(model, method, optimizer, context, meter.laps, ranks=run.ranks)
        declared = declaration_of(spec.method, method.declare(model, context), len(decoder.blocks))
    before = model_checksums(decoder)
    loss_before = _loss(run, "validate_before", model, held_out, context)
    if loss_before is not None:
        loop.note_validation(loss_before)
        run.tell({"step": loop.step, "held_out_loss": loss_before})
    general_before = _loss(run, "general_before", model, general, context)
    if run.device.type == "cuda":
        torch.cuda.empty_cache()  # what these reserved is no part of the train phase

    _take_steps(run, loop, data, held_out)
    loss_after = _loss(run, "validate_after", model, held_out, context)
    if loss_after is not None:
        loop.note_validation(loss_after)
        run.tell({"step": loop.step, "held_out_loss": loss_after})
    general_after = _loss(run, "general_after", model, general, context)
    run.outcome.train = trained_together(run.ranks, loop.result(), model).model_copy(
        update={
            "validation_loss_before": loss_before,
            "validation_loss_after": loss_after,
            "validation_tokens": _trained_tokens(held_out),
            "general_loss_before": general_before,
            "general_loss_after": general_after,
            "general_tokens": _trained_tokens(general),
        }
    )
    reported = report_of(spec.method, method.proof())
    run.outcome.proof = proof_of(loop, reported, declared, before, model_checksums(decoder))
    with meter.phase("finalize"):
        trained = method.finalize(model)
        disable_checkpointing(model, decoder, settings)
    del loop
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    return trained


def _data(
    run: RunParts, settings: TrainSettings, model: nn.Module, tokenizer: Any
) -> tuple[TrainData, list[MicroBatch]]:
    rows = run_rows(
        settings,
        run.task.datasets[settings.data],
        vocab_size=model.config.vocab_size,  # type: ignore[union-attr, arg-type]
        seed=run.task.spec.seed,
    )
    conversation = conversation_of(run)
    data = TrainData(rows.train, tokenizer, settings, run.task.spec.seed, conversation)
    held_out = (
        validation_batches(rows.validation, tokenizer, settings, conversation) if settings.validation_rows else []
    )
    told = sum((batch.told for batch in held_out), RowCounts())
    counts = {
        "num_rows": len(rows.train) - data.num_blank,
        "num_blank_rows": (rows.facts.num_blank_rows or 0) + data.num_blank,
        **data.packing_counts,
        "num_validated_rows": sum(len(batch.input_ids) for batch in held_out),
        "num_validated_cut_rows": sum(batch.num_truncated for batch in held_out),
        "num_validated_cut_tokens": told.cut_tokens,
    }
    run.outcome.rows = rows.facts.model_copy(update=counts)
    return data, held_out


def _tell_rows(run: RunParts, told: RowCounts) -> None:
    """Keep what became of the rows that were trained on."""
    if run.outcome.rows is not None:
        cut = {"num_cut_tokens": told.cut_tokens, "num_cut_answers": told.cut_answers}
        run.outcome.rows = run.outcome.rows.model_copy(update=cut)
    if run.outcome.encoding is not None:
        counts = {"num_rows_begun": told.begun, "num_rows_ended": told.ended}
        run.outcome.encoding = run.outcome.encoding.model_copy(update=counts)


def _general_text(run: RunParts, tokenizer: Any, settings: TrainSettings) -> list[MicroBatch]:
    from harness.data.rows import load_texts

    general = run.task.spec.general
    if general is None:
        return []
    texts = load_texts(run.task.datasets[general.data], "validation")
    return general_batches(texts, tokenizer, general, settings)


def _run_loop(run: RunParts, loop: TrainingLoop, data: TrainData, held_out: list[MicroBatch]) -> None:
    def validate() -> float:
        with run.meter.aside("validate_during"):
            loss = mean_loss(loop.model, held_out, loop.context)[0]
        run.tell({"step": loop.step, "held_out_loss": loss})
        return loss

    def stepped(done: int, loss: float) -> None:
        run.progress(f"training, loss {loss:.3f}", done, total)
        run.tell({"step": done, **loop.log.newest()})

    folder, total = run.task.checkpoint_folder, loop.context.num_steps
    checkpoints = Checkpoints(folder, loop) if folder is not None else None
    if checkpoints is not None:
        checkpoints.restore()
        run.outcome.notes = tuple(checkpoints.notes)
    probe = loop.method.probe_needed()
    if probe is not None and loop.step == 0:
        run.progress("probing", 0, None)
        with run.meter.aside("probe"):
            loop.probe(data.step_batches(), probe)
    skipped = probe.num_batches if probe is not None and probe.consumes_rows else 0
    run.progress("training", loop.step, total)
    loop.run(
        data.step_batches(skipped + loop.step),
        stepped,
        checkpoints.save if checkpoints is not None else None,
        run.task.checkpoint_every,
        validate if held_out else None,
    )
    if checkpoints is not None and run.task.checkpoint_every is not None and not run.task.keep_weights:
        _keep_end(run, loop, checkpoints)


def _take_steps(run: RunParts, loop: TrainingLoop, data: TrainData, held_out: list[MicroBatch]) -> None:
    """Train; out of memory or diverged, what was seen until then is kept, of all processes where all are here to say.

    All of them diverge together; of one that fails otherwise the others do not know.
    """
    heard = ALONE
    try:
        with run.meter.phase("train"):
            _run_loop(run, loop, data, held_out)
    except Diverged:
        if run.ranks.several and run.ranks.can_still_gather():
            heard = run.ranks
            run.phases = phases_together(heard, run.meter.phases)
        raise
    finally:
        if loop.step:
            run.outcome.train = trained_together(heard, loop.result(), loop.model)
            _tell_rows(run, loop.log.told)
        run.outcome.out_of_memory_at = loop.out_of_memory


def _keep_end(run: RunParts, loop: TrainingLoop, checkpoints: Checkpoints) -> None:
    """Write a checkpoint of the last step, so that a process that is killed while it scores has nothing to train again.

    Weights that are kept are enough for that; a checkpoint that cannot be written costs nothing that is there.
    """
    evaluation = run.task.spec.evaluation
    if not evaluation.tasks and evaluation.mt_bench is None:
        return
    start = time.perf_counter()
    try:
        checkpoints.save()
    except HarnessError as error:
        run.outcome.notes += (str(error),)
    loop.log.note_checkpoint(time.perf_counter() - start)


def _loss(
    run: RunParts, phase: str, model: nn.Module, batches: list[MicroBatch], context: EngineContext
) -> float | None:
    if not batches:
        return None
    with run.meter.phase(phase):
        return mean_loss(model, batches, context)[0]


def _trained_tokens(batches: list[MicroBatch]) -> int | None:
    return sum(batch.num_trained_tokens for batch in batches) if batches else None


def _block_scores(
    run: RunParts, method: Method, model: nn.Module, tokenizer: Any, decoder: Decoder
) -> dict[BlockScoreRequest, list[float]]:
    from harness.data.rows import load_texts

    spec = run.task.spec
    request = method.block_scores_needed()
    if request is None:
        return {}
    calibration = spec.calibration
    assert calibration is not None and spec.train is not None
    if spec.train.quantized is not None:
        raise Refused("block scores are computed from weights, which are packed here: set quantization = 'none'")
    dtype = spec.train.dtype

    def score(asked: BlockScoreRequest, samples: Sequence[torch.Tensor]) -> list[float]:
        return block_scores(asked, model, decoder, samples, run.progress)

    def computed() -> str:
        scores = cached_block_scores(
            request,
            model=spec.model,
            dtype=dtype,
            calibration=calibration,
            data=spec.sources["calibration"],
            device=next(model.parameters()).device,
            cache_folder=run.task.cache_folder,
            load=lambda: (score, tokenizer),
            texts=lambda: load_texts(run.task.datasets[calibration.data]),
        )
        return json.dumps(scores)

    with run.meter.phase("block_scores"):
        run.progress("scoring blocks", 0, None)
        return {request: json.loads(run.ranks.refused_by_first(computed))}
