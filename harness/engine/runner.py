"""RunSpec -> Record, inside a child process; load, block scores, prepare, train, finalize, evaluate, save are phases.

Whatever happens ends in a record: this is the one place that catches ``Exception``, and it writes it down.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from harness.encoding import text_encoder
from harness.engine.environment import default_device, describe_environment
from harness.engine.keeping import (
    WEIGHTS,
)
from harness.engine.loading import STREAM, RandomWeights, load_together
from harness.engine.memory import PhaseMeter
from harness.engine.ranks import ALONE, Deserted, Ranks
from harness.engine.run_keeping import keep, keep_unscored, merge
from harness.engine.run_parts import Outcome, RunParts, Trained
from harness.engine.run_scoring import evaluate_run
from harness.engine.run_training import train
from harness.engine.stepping import Diverged
from harness.engine.together import phases_together
from harness.engine.unchanged import check_unchanged
from harness.errors import HarnessError, Refused
from harness.method import METHODS, check_run
from harness.progress import Progress, Tell, unheard
from harness.proof import judge
from harness.record import LOG_LINES, SCORED_OR_USELESS, Record, Status
from harness.record_training import OutOfMemoryAt, Phase
from harness.source import source_checksum, training_checksum
from harness.task import RunTask
from harness.tensors import seeding
from harness.tensors.adapters import load_adapter
from harness.tensors.decoder import find_decoder
from harness.tensors.loading import build_model, load_model, load_tokenizer
from harness.tensors.out_of_memory import is_out_of_memory
from harness.tensors.quantized import quantize
from harness.tensors.sharded import shard


def execute(
    task: RunTask,
    progress: Progress,
    leave: Callable[[Record], None] = lambda record: None,
    ranks: Ranks = ALONE,
    tell: Tell = unheard,
) -> Record:
    """Return the record of a run; raises only an interrupt that comes while the record is made, and ``Deserted``.

    Args:
        task: The run, or weights to evaluate.
        progress: Called with what is going on.
        leave: Called before the evaluation, once the weights are kept, with the record of a run that ends there.
        ranks: The processes that share the run out. Each returns a record; the first one's holds what all measured.
        tell: Called with what each step says of itself, and each held-out loss.

    Raises:
        Deserted: this process could not go on because another one ended; with the first one's record.
    """
    started_at = datetime.now(UTC)
    environment = describe_environment().of_ranks(ranks.size)
    device = default_device()

    def record(status: Status, reason: str | None, log_tail: str | None) -> Record:
        parts = vars(run.outcome) | {"phases": run.phases or _phases(run), "log_tail": log_tail}
        return task.record(environment, started_at, status, reason, **parts)

    run = RunParts(task, progress, device, PhaseMeter(device), ranks, record, leave, tell)
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
            evaluate_run(run, *_load_kept(run))
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
        keep_unscored(run, run.unscored)
    if run.outcome.weights is not None and status not in SCORED_OR_USELESS:
        reason = task.unscored(reason)
    if deserted:
        raise Deserted(record(status, reason, log_tail) if ranks.first else None)
    return record(status, reason, log_tail)


def import_libraries(architectures: Sequence[str]) -> None:
    """Import what a run that trains imports before its first step, without computing anything.

    lm-eval is left out: its memory would be in the figures of a run's training.

    Args:
        architectures: Names of model classes; one that transformers does not have is left to the run.
    """
    import peft  # noqa: F401
    import torch._dynamo  # noqa: F401  # with peft; by itself in other methods
    import transformers

    for name in ("AutoModelForCausalLM", "AutoTokenizer", "get_scheduler", *architectures):
        getattr(transformers, name, None)
    source_checksum(), training_checksum()  # of what is imported: kept, whatever becomes of the files


def _phases(run: RunParts) -> list[Phase]:
    """Return what was measured; of a run that is finished now what it measured then, and its evaluation now."""
    if run.task.finishes is None:
        return list(run.meter.phases)
    now = [phase for phase in run.meter.phases if phase.name != "load"]
    names = {phase.name for phase in now}
    return [*(phase for phase in run.task.finishes.phases if phase.name not in names), *now]


def _proven(run: RunParts) -> tuple[Status, str | None]:
    """Return the status of a run that came to its end: what it measured stays, whatever its proof says.

    The first of several processes judges: its proof is of the parts that it holds, the largest.
    """
    if not run.ranks.first:
        return "ok", None
    train, proof, asked = run.outcome.train, run.outcome.proof, run.task.spec.train
    if train is None or proof is None or asked is None:
        return "ok", None
    judgement = judge(train, proof, asked.max_grad_norm)
    return ("unproven", judgement.sentence()) if judgement.failed else ("ok", None)


def _status_of(error: Exception, run: RunParts) -> tuple[Status, str]:
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


def _train_and_evaluate(run: RunParts) -> None:
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
    trained = Trained(method, model if spec.train is None else train(run, method, model, tokenizer, decoder), tokenizer)
    if spec.train is not None:
        run.unscored = trained
    if task.keep_weights:
        keep(run, trained)
    evaluate_run(run, trained.model, tokenizer)
    run.unscored = None
    if task.keep_weights and run.outcome.weights_error is None:
        merge(run, trained, task.work_folder / WEIGHTS)


def _load(run: RunParts) -> tuple[nn.Module, Any]:
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


def _load_kept(run: RunParts) -> tuple[nn.Module, Any]:
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


def _finish(run: RunParts, done: Record) -> None:
    """Score what a run had trained; whatever else it measured is its own, and scores that it had are not made again."""
    task = run.task
    taken = {part.name: getattr(done, part.name) for part in fields(Outcome)}
    run.outcome = Outcome(**taken | {"out_of_memory_at": None})
    model, tokenizer = _load_kept(run)
    run.outcome.encoding = done.encoding or run.outcome.encoding  # what it counted in training
    evaluate_run(run, model, tokenizer)
    run.outcome.notes += (f"trained in a run that ended {done.status} on {done.started_at:%Y-%m-%d}, and scored later",)
    run.outcome.weights_held = done.weights_held and not task.keep_weights
    if run.outcome.weights_held:
        run.outcome.weights, run.outcome.weights_held = None, False
    elif task.adapter_folder is not None:
        method_class = METHODS.get(task.spec.method)
        method = method_class(method_class.Config.model_validate(task.spec.config))
        merge(run, Trained(method, model, tokenizer), task.adapter_folder.parent)
