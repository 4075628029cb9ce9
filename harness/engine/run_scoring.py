"""The scores of one run: tasks of lm-eval, and answers to MT-Bench. The first of several processes writes them down."""

from __future__ import annotations

from typing import Any

from torch import nn

from harness.engine.run_parts import RunParts, conversation_of
from harness.engine.unchanged import check_scored
from harness.record import MTBenchAnswers
from harness.record_text import ScoringFacts
from harness.tensors import seeding


def evaluate_run(run: RunParts, model: nn.Module, tokenizer: Any) -> None:
    """Score a model and let it answer, as far as the run asks for it and has neither yet."""
    if run.task.spec.evaluation.tasks and not run.outcome.scores:
        _score(run, model, tokenizer)
    if run.task.spec.evaluation.mt_bench is not None and run.outcome.mt_bench is None:
        _answer_mt_bench(run, model, tokenizer)


def _answer_mt_bench(run: RunParts, model: nn.Module, tokenizer: Any) -> None:
    from harness.assets.mt_bench import load_mt_bench
    from harness.evaluation.mt_bench import TEMPERATURES, TOP_K, answer_questions, write_answers

    spec, folder, template = run.task.spec, run.task.mt_bench_folder, conversation_of(run)
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


def _score(run: RunParts, model: nn.Module, tokenizer: Any) -> None:
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
