"""RunSpec -> Record, inside a child process; load, block scores, prepare, train, finalize, evaluate, save are phases.

Whatever happens ends in a record: this is the one place that catches ``Exception``, and it writes it down.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import torch
from pydantic import JsonValue
from torch import nn

from harness.conversation import ConversationTemplate, find_template
from harness.data.batches import MicroBatch, TrainData, general_batches, validation_batches
from harness.data.drawn import run_rows
from harness.data.examples import Example, Row
from harness.declaration import Declaration
from harness.engine.activation_checkpointing import disable_checkpointing, enable_checkpointing
from harness.engine.block_scores import cached_block_scores
from harness.engine.checkpoint import Checkpoints
from harness.engine.context import EngineContext
from harness.engine.environment import default_device, describe_environment
from harness.engine.memory import PhaseMeter
from harness.engine.statements import declaration_of, report_of
from harness.engine.stepping import Diverged
from harness.engine.training import TrainingLoop, mean_loss
from harness.engine.unchanged import check_unchanged
from harness.errors import HarnessError, Refused
from harness.method import METHODS, BlockScoreRequest, Decoder, Method
from harness.progress import Progress
from harness.proof import judge
from harness.record import LOG_LINES, MTBenchAnswers, Proof, Record, Score, Status
from harness.record_training import OutOfMemoryAt, TrainResult
from harness.settings import TrainSettings
from harness.task import RunTask
from harness.tensors import seeding
from harness.tensors.decoder import ModelChecksums, find_decoder, model_checksums
from harness.tensors.loading import build_model, load_model, load_tokenizer, save_weights
from harness.tensors.out_of_memory import is_out_of_memory


@dataclass
class _Outcome:
    train: TrainResult | None = None
    scores: tuple[Score, ...] = ()
    proof: Proof | None = None
    items: str | None = None
    mt_bench: MTBenchAnswers | None = None
    weights: str | None = None
    out_of_memory_at: OutOfMemoryAt | None = None
    notes: tuple[str, ...] = ()


@dataclass
class _Run:
    """The parts of a run as they come to be."""

    task: RunTask
    progress: Progress
    device: torch.device
    meter: PhaseMeter
    outcome: _Outcome = field(default_factory=_Outcome)


def execute(task: RunTask, progress: Progress) -> Record:
    """Return the record of a run; never raises but for an interrupt that comes while the record is made."""
    started_at = datetime.now(UTC)
    environment = describe_environment()
    device = default_device()
    run = _Run(task, progress, device, PhaseMeter(device))
    status: Status = "ok"
    reason: str | None = None
    log_tail: str | None = None
    try:
        if task.of is None:
            _train_and_evaluate(run)
            status, reason = _proven(run)
        else:
            _evaluate_kept(run)
    except Refused as error:
        status, reason = "refused", str(error)
    except (Diverged, FloatingPointError) as error:
        status, reason = "diverged", str(error)
    except KeyboardInterrupt:
        status, reason = "interrupted", f"interrupted in phase {run.meter.current}"
    except HarnessError as error:
        status, reason = "failed", str(error)
    except Exception as error:
        log_tail = "".join(traceback.format_exception(error)[-LOG_LINES:])
        status, reason = _status_of(error, run)
    return task.record(
        environment, started_at, status, reason, phases=run.meter.phases, log_tail=log_tail, **vars(run.outcome)
    )


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
    method_class.check(config, spec.train)
    method = method_class(config)
    if spec.train is not None and spec.train.deterministic:
        torch.use_deterministic_algorithms(True)
    with meter.phase("load"):
        run.progress("loading", 0, None)
        model, tokenizer = _load(run)
        decoder = find_decoder(model, task.model)
    trained = model if spec.train is None else _train(run, method, model, tokenizer, decoder)
    _evaluate(run, trained, tokenizer)
    if task.keep_weights:
        with meter.phase("save"):
            run.progress("saving", 0, None)
            _save(run, method, trained, tokenizer)


def _load(run: _Run) -> tuple[nn.Module, Any]:
    """Return model and tokenizer; random weights, seeded by the run, come without one."""
    task, train = run.task, run.task.spec.train
    dtype = train.dtype if train is not None else "fp32"
    if task.model_folder is not None:
        tokenizer = load_tokenizer(task.model_folder)
        return load_model(task.model_folder, dtype, run.device), tokenizer
    assert task.model.weights == "random"
    with seeding.seeded_globally(task.spec.seed, "weights"):
        return build_model(task.model, dtype, run.device), None


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
    )
    with meter.phase("prepare"):
        run.progress("preparing", 0, None)
        enable_checkpointing(model, decoder, settings)
        model = method.prepare(model, context)
        loop = TrainingLoop(model, method, method.build_optimizer(model, context), context, meter.laps)
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
        run.outcome.out_of_memory_at = loop.out_of_memory
    loss_after = _loss(run, "validate_after", model, held_out, context)
    if loss_after is not None:
        loop.note_validation(loss_after)
    general_after = _loss(run, "general_after", model, general, context)
    run.outcome.train = loop.result().model_copy(
        update={
            "validation_loss_before": loss_before,
            "validation_loss_after": loss_after,
            "validation_tokens": _trained_tokens(held_out),
            "general_loss_before": general_before,
            "general_loss_after": general_after,
            "general_tokens": _trained_tokens(general),
        }
    )
    run.outcome.proof = _proof(loop, report_of(spec.method, method.proof()), declared, before, model_checksums(decoder))
    with meter.phase("finalize"):
        trained = method.finalize(model)
        disable_checkpointing(model, decoder, settings)
    del loop
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    return trained


def _data(run: _Run, settings: TrainSettings, model: nn.Module, tokenizer: Any) -> tuple[TrainData, list[MicroBatch]]:
    def rows(part: Literal["train", "validation"]) -> Sequence[Row | Example]:
        return run_rows(
            settings,
            run.task.datasets[settings.data],
            part,
            vocab_size=model.config.vocab_size,  # type: ignore[union-attr, arg-type]
            seed=run.task.spec.seed,
        )

    conversation = _conversation(run)
    data = TrainData(rows("train"), tokenizer, settings, run.task.spec.seed, conversation)
    if not settings.validation_rows:
        return data, []
    return data, validation_batches(rows("validation"), tokenizer, settings, conversation)


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


def _loss(run: _Run, phase: str, model: nn.Module, batches: list[MicroBatch], context: EngineContext) -> float | None:
    if not batches:
        return None
    with run.meter.phase(phase):
        return mean_loss(model, batches, context)[0]


def _trained_tokens(batches: list[MicroBatch]) -> int | None:
    return sum(batch.num_trained_tokens for batch in batches) if batches else None


def _proof(
    loop: TrainingLoop,
    reported: dict[str, JsonValue],
    declared: Declaration | None,
    before: ModelChecksums,
    after: ModelChecksums,
) -> Proof:
    return Proof(
        block_checksums_before=before.blocks,
        block_checksums_after=after.blocks,
        other_checksums_before=before.others,
        other_checksums_after=after.others,
        base_checksums_before=before.base_blocks,
        base_checksums_after=after.base_blocks,
        declared=declared,
        ever_trainable_blocks=loop.log.ever_trainable_blocks,
        ever_trainable_others=loop.log.ever_trainable_others,
        optimizer_state_bytes=loop.result().curve.optimizer_state_bytes[-1],
        method=reported,
    )


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
    with run.meter.phase("block_scores"):
        run.progress("scoring blocks", 0, None)
        scores = cached_block_scores(
            request,
            model=spec.model,
            dtype=spec.train.dtype,
            calibration=calibration,
            data=spec.sources["calibration"],
            device=run.device,
            cache_folder=run.task.cache_folder,
            load=lambda: (model, decoder, tokenizer),
            texts=lambda: load_texts(run.task.datasets[calibration.data]),
        )
    return {request: scores}


def _evaluate(run: _Run, model: nn.Module, tokenizer: Any) -> None:
    if run.task.spec.evaluation.tasks:
        _score(run, model, tokenizer)
    if run.task.spec.evaluation.mt_bench is not None:
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
            progress=lambda done, total: run.progress("answering", done, total),
        )
    file = run.task.work_folder / "answers.jsonl"
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


def _score(run: _Run, model: nn.Module, tokenizer: Any) -> None:
    from harness.evaluation.scoring import evaluate, write_items

    settings = run.task.spec.evaluation
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
            progress=lambda done, total: run.progress("evaluating", done, total),
        )
    file = run.task.work_folder / "items.jsonl.zst"
    write_items(file, evaluation.items)
    run.outcome.scores = evaluation.scores
    run.outcome.items = file.name


def _save(run: _Run, method: Method, model: nn.Module, tokenizer: Any) -> None:
    folder = run.task.work_folder / "weights"
    adapter = method.adapter(model)
    if adapter is not None:
        adapter.save_pretrained(folder / "adapter", safe_serialization=True)  # type: ignore[operator]
    save_weights(method.export(model), tokenizer, folder)
    run.outcome.weights = folder.name


def _evaluate_kept(run: _Run) -> None:
    task = run.task
    with run.meter.phase("load"):
        run.progress("loading", 0, None)
        model, tokenizer = _load(run)
        if task.adapter_folder is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, task.adapter_folder)
    _evaluate(run, model, tokenizer)
