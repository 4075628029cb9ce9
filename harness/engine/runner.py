"""RunSpec -> Record, inside a child process; load, block scores, prepare, train, finalize, evaluate, save are phases.

Whatever happens ends in a record: this is the one place that catches ``Exception``, and it writes it down.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from harness.conversation import ConversationTemplate, find_template
from harness.data.batches import MicroBatch, RowCounts, TrainData, general_batches, validation_batches
from harness.data.drawn import run_rows
from harness.encoding import text_encoder
from harness.engine.activation_checkpointing import disable_checkpointing, enable_checkpointing
from harness.engine.block_scores import cached_block_scores
from harness.engine.checkpoint import Checkpoints
from harness.engine.context import EngineContext
from harness.engine.environment import default_device, describe_environment
from harness.engine.keeping import (
    WEIGHTS,
    first_line,
    keep_merged,
    keep_merged_alone,
    keep_trained,
    needs_merging,
)
from harness.engine.loading import HOST, STREAM, RandomWeights, load_together
from harness.engine.memory import PhaseMeter
from harness.engine.ranks import ALONE, Deserted, Ranks
from harness.engine.statements import declaration_of, proof_of, report_of
from harness.engine.stepping import Diverged
from harness.engine.together import phases_together, trained_together
from harness.engine.training import TrainingLoop, mean_loss
from harness.engine.unchanged import check_scored, check_unchanged
from harness.errors import HarnessError, Refused
from harness.files import remove
from harness.kept import ADAPTER
from harness.method import METHODS, BlockScoreRequest, Decoder, Method, check_run
from harness.progress import Progress
from harness.proof import judge
from harness.record import LOG_LINES, SCORED_OR_USELESS, MTBenchAnswers, Proof, Record, Score, Status
from harness.record_text import EncodingFacts, RowFacts, ScoringFacts
from harness.record_training import OutOfMemoryAt, Phase, TrainResult
from harness.settings import TrainSettings
from harness.task import RunTask
from harness.tensors import seeding
from harness.tensors.adapters import load_adapter
from harness.tensors.decoder import find_decoder, model_checksums
from harness.tensors.loading import build_model, load_model, load_tokenizer
from harness.tensors.out_of_memory import is_out_of_memory
from harness.tensors.quantized import quantize
from harness.tensors.sharded import reshard, shard


@dataclass
class _Outcome:
    train: TrainResult | None = None
    rows: RowFacts | None = None
    encoding: EncodingFacts | None = None
    scores: tuple[Score, ...] = ()
    proof: Proof | None = None
    items: str | None = None
    mt_bench: MTBenchAnswers | None = None
    scoring: ScoringFacts | None = None
    weights: str | None = None
    weights_held: bool = False
    weights_error: str | None = None
    out_of_memory_at: OutOfMemoryAt | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Trained:
    """What is scored, and kept."""

    method: Method
    model: nn.Module
    tokenizer: Any


@dataclass
class _Run:
    """The parts of a run as they come to be."""

    task: RunTask
    progress: Progress
    device: torch.device
    meter: PhaseMeter
    ranks: Ranks
    record: Callable[..., Record]
    """Returns the record as it is now, of a status, a reason and a log's tail."""
    leave: Callable[[Record], None]
    unscored: _Trained | None = None
    """Trained, and not yet scored."""
    phases: list[Phase] | None = None
    """Of all processes together, once the run has come to its end."""
    outcome: _Outcome = field(default_factory=_Outcome)


def execute(
    task: RunTask,
    progress: Progress,
    leave: Callable[[Record], None] = lambda record: None,
    ranks: Ranks = ALONE,
) -> Record:
    """Return the record of a run; raises only an interrupt that comes while the record is made, and ``Deserted``.

    Args:
        task: The run, or weights to evaluate.
        progress: Called with what is going on.
        leave: Called before the evaluation, once the weights are kept, with the record of a run that ends there.
        ranks: The processes that share the run out. Each returns a record; the first one's holds what all measured.

    Raises:
        Deserted: this process could not go on because another one ended; with the first one's record.
    """
    started_at = datetime.now(UTC)
    environment = describe_environment().of_ranks(ranks.size)
    device = default_device()

    def record(status: Status, reason: str | None, log_tail: str | None) -> Record:
        parts = vars(run.outcome) | {"phases": run.phases or _phases(run), "log_tail": log_tail}
        return task.record(environment, started_at, status, reason, **parts)

    run = _Run(task, progress, device, PhaseMeter(device), ranks, record, leave)
    status: Status = "ok"
    reason: str | None = None
    log_tail: str | None = None
    deserted = False
    try:
        if task.finishes is not None:
            _finish(run, task.finishes)
        elif task.of is None:
            _train_and_evaluate(run)
        else:
            _evaluate(run, *_load_kept(run))
        status, reason = _proven(run)
        run.phases = phases_together(run.ranks, _phases(run))
    except Refused as error:
        status, reason = "refused", str(error)
    except (Diverged, FloatingPointError) as error:
        status, reason = "diverged", str(error)
    except KeyboardInterrupt:
        status, reason = "interrupted", f"interrupted in phase {run.meter.current}"
    except HarnessError as error:
        status, reason = "failed", str(error)
    except Exception as error:
        deserted = ranks.left(error)
        log_tail = "".join(traceback.format_exception(error)[-LOG_LINES:])
        status, reason = _status_of(error, run)
    if run.unscored is not None and status not in SCORED_OR_USELESS and not deserted:
        _keep_unscored(run, run.unscored)
    if run.outcome.weights is not None and status not in SCORED_OR_USELESS:
        reason = task.unscored(reason)
    if deserted:
        raise Deserted(record(status, reason, log_tail) if ranks.first else None)
    return record(status, reason, log_tail)


def _phases(run: _Run) -> list[Phase]:
    """Return what was measured; of a run that is finished now what it measured then, and its evaluation now."""
    if run.task.finishes is None:
        return list(run.meter.phases)
    now = [phase for phase in run.meter.phases if phase.name != "load"]
    names = {phase.name for phase in now}
    return [*(phase for phase in run.task.finishes.phases if phase.name not in names), *now]


def _proven(run: _Run) -> tuple[Status, str | None]:
    """Return the status of a run that came to its end: what it measured stays, whatever its proof says."""
    train, proof, asked = run.outcome.train, run.outcome.proof, run.task.spec.train
    if train is None or proof is None or asked is None:
        return "ok", None
    judgement = judge(train, proof, asked.max_grad_norm)
    return ("unproven", judgement.sentence()) if judgement.failed else ("ok", None)


def _status_of(error: Exception, run: _Run) -> tuple[Status, str]:
    phase = run.meter.current
    text = str(error).strip().splitlines()
    first = text[0] if text else type(error).__name__
    if not is_out_of_memory(error):
        return "failed", f"{type(error).__name__} in phase {phase}: {first}"
    at = run.outcome.out_of_memory_at
    if at is None:
        run.outcome.out_of_memory_at = None if phase is None else OutOfMemoryAt(phase=phase)
        return "out_of_memory", f"out of memory in phase {phase}: {first}"
    return "out_of_memory", f"out of memory in phase {phase}, step {at.step}, moment {at.moment}: {first}"


def _train_and_evaluate(run: _Run) -> None:
    task, spec, meter = run.task, run.task.spec, run.meter
    check_unchanged(task)
    method_class = METHODS.get(spec.method)
    config = method_class.Config.model_validate(spec.config)
    check_run(method_class, config, spec.train, run.ranks.size)
    method = method_class(config)
    if spec.train is not None and spec.train.deterministic:
        torch.use_deterministic_algorithms(True)
    with meter.phase("load"):
        run.progress("loading", 0, None)
        model, tokenizer = _load(run)
        decoder = find_decoder(model, task.model)
        if run.ranks.several and spec.train is None:
            shard(model, decoder, run.ranks.mesh)
    trained = _Trained(
        method, model if spec.train is None else _train(run, method, model, tokenizer, decoder), tokenizer
    )
    if spec.train is not None:
        run.unscored = trained
    if task.keep_weights:
        _keep(run, trained)
    _evaluate(run, trained.model, tokenizer)
    run.unscored = None
    if task.keep_weights and run.outcome.weights_error is None:
        _merge(run, trained, task.work_folder / WEIGHTS)


def _load(run: _Run) -> tuple[nn.Module, Any]:
    """Return model and tokenizer; random weights, seeded by the run, come without one."""
    task, dtype = run.task, run.task.spec.dtype
    how = None if task.spec.train is None else task.spec.train.quantized
    work, ranks = task.work_folder, run.ranks
    if task.model_folder is not None:
        tokenizer = load_tokenizer(task.model_folder)
        run.outcome.encoding = text_encoder(tokenizer).facts()
        if ranks.several:
            return load_together(task.model_folder, dtype, ranks, work), tokenizer
        return load_model(task.model_folder, dtype, run.device, how), tokenizer
    assert task.model.weights == "random"
    if ranks.several:
        return RandomWeights(task.model, dtype, run.device, task.spec.seed).build_together(ranks, work), None
    with seeding.seeded_globally(task.spec.seed, STREAM):
        model = build_model(task.model, dtype, run.device)
    if how is not None:
        quantize(model, how, dtype)
    return model, None


def _train(run: _Run, method: Method, model: nn.Module, tokenizer: Any, decoder: Decoder) -> nn.Module:
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
    general_before = _loss(run, "general_before", model, general, context)
    if run.device.type == "cuda":
        torch.cuda.empty_cache()  # what these reserved is no part of the train phase

    try:
        with meter.phase("train"):
            _run_loop(run, loop, data, held_out)
    finally:
        # An out-of-memory or a divergence keeps what was seen until then.
        if loop.step:
            run.outcome.train = loop.result()
            _tell_rows(run, loop.log.told)
        run.outcome.out_of_memory_at = loop.out_of_memory
    loss_after = _loss(run, "validate_after", model, held_out, context)
    if loss_after is not None:
        loop.note_validation(loss_after)
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


def _data(run: _Run, settings: TrainSettings, model: nn.Module, tokenizer: Any) -> tuple[TrainData, list[MicroBatch]]:
    rows = run_rows(
        settings,
        run.task.datasets[settings.data],
        vocab_size=model.config.vocab_size,  # type: ignore[union-attr, arg-type]
        seed=run.task.spec.seed,
    )
    conversation = _conversation(run)
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


def _tell_rows(run: _Run, told: RowCounts) -> None:
    """Keep what became of the rows that were trained on."""
    if run.outcome.rows is not None:
        cut = {"num_cut_tokens": told.cut_tokens, "num_cut_answers": told.cut_answers}
        run.outcome.rows = run.outcome.rows.model_copy(update=cut)
    if run.outcome.encoding is not None:
        counts = {"num_rows_begun": told.begun, "num_rows_ended": told.ended}
        run.outcome.encoding = run.outcome.encoding.model_copy(update=counts)


def _conversation(run: _Run) -> ConversationTemplate | None:
    name = run.task.spec.conversation
    return None if name is None else find_template(name)


def _general_text(run: _Run, tokenizer: Any, settings: TrainSettings) -> list[MicroBatch]:
    from harness.data.rows import load_texts

    general = run.task.spec.general
    if general is None:
        return []
    texts = load_texts(run.task.datasets[general.data], "validation")
    return general_batches(texts, tokenizer, general, settings)


def _run_loop(run: _Run, loop: TrainingLoop, data: TrainData, held_out: list[MicroBatch]) -> None:
    def validate() -> float:
        with run.meter.aside("validate_during"):
            return mean_loss(loop.model, held_out, loop.context)[0]

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
        lambda done, loss: run.progress(f"training, loss {loss:.3f}", done, total),
        checkpoints.save if checkpoints is not None else None,
        run.task.checkpoint_every,
        validate if held_out else None,
    )
    if checkpoints is not None and run.task.checkpoint_every is not None and not run.task.keep_weights:
        _keep_end(run, loop, checkpoints)


def _keep_end(run: _Run, loop: TrainingLoop, checkpoints: Checkpoints) -> None:
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


def _loss(run: _Run, phase: str, model: nn.Module, batches: list[MicroBatch], context: EngineContext) -> float | None:
    if not batches:
        return None
    with run.meter.phase(phase):
        return mean_loss(model, batches, context)[0]


def _trained_tokens(batches: list[MicroBatch]) -> int | None:
    return sum(batch.num_trained_tokens for batch in batches) if batches else None


def _block_scores(
    run: _Run, method: Method, model: nn.Module, tokenizer: Any, decoder: Decoder
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

    def computed() -> str:
        scores = cached_block_scores(
            request,
            model=spec.model,
            dtype=dtype,
            calibration=calibration,
            data=spec.sources["calibration"],
            device=next(model.parameters()).device,
            cache_folder=run.task.cache_folder,
            load=lambda: (model, decoder, tokenizer),
            texts=lambda: load_texts(run.task.datasets[calibration.data]),
        )
        return json.dumps(scores)

    with run.meter.phase("block_scores"):
        run.progress("scoring blocks", 0, None)
        return {request: json.loads(run.ranks.refused_by_first(computed))}


def _evaluate(run: _Run, model: nn.Module, tokenizer: Any) -> None:
    if run.task.spec.evaluation.tasks and not run.outcome.scores:
        _score(run, model, tokenizer)
    if run.task.spec.evaluation.mt_bench is not None and run.outcome.mt_bench is None:
        _answer_mt_bench(run, model, tokenizer)


def _answer_mt_bench(run: _Run, model: nn.Module, tokenizer: Any) -> None:
    from harness.assets.mt_bench import load_mt_bench
    from harness.evaluation.mt_bench import TEMPERATURES, TOP_K, answer_questions, write_answers

    spec, folder, template = run.task.spec, run.task.mt_bench_folder, _conversation(run)
    settings = spec.evaluation.mt_bench
    assert settings is not None and folder is not None and template is not None
    questions = load_mt_bench(folder).first_of_each_category(spec.evaluation.limit)
    model_id = f"{spec.model_name}-{spec.label}-seed{spec.seed}"
    with run.meter.phase("answer"):
        run.progress("answering", 0, None)
        answers = answer_questions(
            model,
            tokenizer,
            questions,
            template,
            model_id=model_id,
            max_new_tokens=settings.max_new_tokens,
            batch_tokens=spec.evaluation.batch_tokens,
            generator=lambda stream: seeding.torch_generator(spec.seed, stream),
            agreed=run.ranks.of_first,
            progress=lambda done, total: run.progress("answering", done, total),
        )
    file = run.task.work_folder / "answers.jsonl"
    if run.ranks.first:
        write_answers(file, answers)
    run.outcome.mt_bench = MTBenchAnswers(
        file=file.name,
        model_id=model_id,
        template=template.name,
        template_origin=template.origin,
        num_questions=len(questions),
        num_cut=answers.num_cut,
        sampling={"temperature": dict(TEMPERATURES), "top_k": TOP_K},
    )
    told = {
        "overruled_generation": answers.overruled,
        "num_empty_answers": answers.num_empty,
        "num_short_of_room": answers.num_short_of_room,
    }
    run.outcome.scoring = (run.outcome.scoring or ScoringFacts()).model_copy(update=told)


def _score(run: _Run, model: nn.Module, tokenizer: Any) -> None:
    from harness.evaluation.scoring import evaluate, write_items

    settings = run.task.spec.evaluation
    check_scored(run.task)
    with run.meter.phase("evaluate"):
        run.progress("evaluating", 0, None)
        evaluation = evaluate(
            model,
            tokenizer,
            settings,
            rows_folder=run.task.rows_folder,
            datasets_cache=run.task.cache_folder / "datasets",
            device=str(run.device),
            offline=run.task.offline,
            places=run.task.own_tasks,
            progress=lambda done, total: run.progress("evaluating", done, total),
        )
    file = run.task.work_folder / "items.jsonl.zst"
    if run.ranks.first:
        write_items(file, evaluation.items)
    run.outcome.scores = evaluation.scores
    run.outcome.scoring = evaluation.facts
    run.outcome.items = file.name


def _keep(run: _Run, trained: _Trained) -> None:
    """Keep the weights before they are scored; where the disk refuses, the scores are worth having all the same."""
    task, train = run.task, run.task.spec.train
    folder, data = task.work_folder / WEIGHTS, None if train is None else task.datasets.get(train.data)
    with run.meter.phase("save"):
        run.progress("saving", 0, None)
        try:
            whole = keep_trained(
                trained.method, trained.model, trained.tokenizer, folder, task.model, data=data, ranks=run.ranks
            )
        except (OSError, SafetensorError) as error:
            if run.ranks.first:
                remove(folder)
            run.outcome.weights_error = f"the weights could not be kept: {first_line(error)}"
            return
    if whole:
        run.outcome.weights = folder.name
        run.leave(run.record("interrupted", run.task.unscored("ended before it was scored"), None))


def _merge(run: _Run, trained: _Trained, folder: Path) -> None:
    """Write the merged weights beside a kept adapter; the adapter stays where that fails."""
    if not run.ranks.from_first(lambda: "merge" if needs_merging(folder) else ""):
        return
    with run.meter.phase("merge"):
        run.progress("merging", 0, None)
        try:
            if run.ranks.several and trained.method.has_adapter:
                keep_merged_alone(trained.method, lambda: _loaded_alone(run, folder / ADAPTER), folder, run.ranks)
            else:
                keep_merged(trained.method, trained.model, folder, run.ranks)
        except (OSError, SafetensorError) as error:
            run.outcome.weights_error = f"the merged weights could not be kept: {first_line(error)}"
            return
    run.outcome.weights = run.outcome.weights or folder.name


def _loaded_alone(run: _Run, adapter: Path) -> nn.Module:
    """Return base model and adapter as one process has them, on the host."""
    task, dtype = run.task, run.task.spec.dtype
    if task.model_folder is not None:
        base = load_model(task.model_folder, dtype, HOST)
    else:
        base = RandomWeights(task.model, dtype, run.device, task.spec.seed).build_alone(task.work_folder)
    return load_adapter(base, adapter)


def _keep_unscored(run: _Run, trained: _Trained) -> None:
    """Keep the weights of a run that could not be scored, whether or not anybody asked for them."""
    asked = run.task.keep_weights
    if not run.ranks.can_still_gather():
        if run.outcome.weights is None and run.outcome.weights_error is None:
            run.outcome.weights_error = "the weights could not be gathered: the run's processes ended apart"
        return
    reshard(trained.model)
    try:
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
        if run.outcome.weights is None and run.outcome.weights_error is None:
            _keep(run, trained)
        if run.outcome.weights_error is None and (asked or run.outcome.weights is None):
            _merge(run, trained, run.task.work_folder / WEIGHTS)
    except Exception as error:
        run.outcome.weights_error = f"the weights could not be kept whole: {first_line(error)}"
    run.outcome.weights_held = run.outcome.weights is not None and not asked


def _load_kept(run: _Run) -> tuple[nn.Module, Any]:
    """Return the model that was trained, as it is to be scored, and its tokenizer."""
    with run.meter.phase("load"):
        run.progress("loading", 0, None)
        model, tokenizer = _load(run)
        decoder = find_decoder(model, run.task.model) if run.ranks.several else None
        if run.task.adapter_folder is not None:
            model = load_adapter(model, run.task.adapter_folder)
        if decoder is not None:
            shard(model, decoder, run.ranks.mesh)
    return model, tokenizer


def _finish(run: _Run, done: Record) -> None:
    """Score what a run had trained; whatever else it measured is its own, and scores that it had are not made again."""
    task = run.task
    taken = {part.name: getattr(done, part.name) for part in fields(_Outcome)}
    run.outcome = _Outcome(**taken | {"out_of_memory_at": None})
    model, tokenizer = _load_kept(run)
    run.outcome.encoding = done.encoding or run.outcome.encoding  # what it counted in training
    _evaluate(run, model, tokenizer)
    run.outcome.notes += (f"trained in a run that ended {done.status} on {done.started_at:%Y-%m-%d}, and scored later",)
    run.outcome.weights_held = done.weights_held and not task.keep_weights
    if run.outcome.weights_held:
        run.outcome.weights, run.outcome.weights_held = None, False
    elif task.adapter_folder is not None:
        method_class = METHODS.get(task.spec.method)
        method = method_class(method_class.Config.model_validate(task.spec.config))
        _merge(run, _Trained(method, model, tokenizer), task.adapter_folder.parent)
