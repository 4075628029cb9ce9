"""What lm-eval does with few-shot examples and with several targets that a reader of scores would not expect.

Reference: lm_eval 0.4.13, api/task.py. ``ConfigurableTask.fewshot_context`` keeps the scored question out of its own
prompt only where ``fewshot_split`` is the test split by name: a task that scores its validation split and draws from
it, or that has a test split alone and names no other to draw from, may be shown the question with its answer. Examples
are drawn one item after the other, so that an item's depend on which items stand before it: the first items of a task
have the same examples under any ``limit``. ``process_results`` gives metrics that stand behind ``exact_match`` the
answer once for each target.
"""

from __future__ import annotations

from typing import Any

from lm_eval.api.task import Task

from harness.errors import HarnessError


def refuse_leak(name: str, task: Task) -> None:
    """Refuse a task whose prompts may hold the scored question with its answer.

    Raises:
        HarnessError: examples are drawn from the split that is scored, and nothing keeps the question out of them.
    """
    if not task.get_config("num_fewshot"):
        return
    scored, drawn = scored_split(task), drawn_split(task)
    if drawn is None or drawn != scored or _keeps_out(task):
        return
    raise HarnessError(
        f"task '{name}' draws its few-shot examples from the split that it scores ('{scored}'), so that a prompt may "
        "hold the scored question with its answer; take num_fewshot = 0"
    )


def refuse_too_few(name: str, task: Task) -> None:
    """Refuse more few-shot examples than there are rows to draw them from.

    Raises:
        HarnessError: there are fewer; lm-eval ends with an error of ``random``, at the first prompt.
    """
    shots = task.get_config("num_fewshot") or 0
    there = len(list(task.fewshot_docs())) if shots else 0
    kept = there - (1 if shots and _keeps_out(task) else 0)
    if kept < shots:
        raise HarnessError(
            f"task '{name}' has {there} rows to draw few-shot examples from, too few for num_fewshot = {shots}; take "
            f"{max(kept, 0)} or less"
        )


def scored_split(task: Task) -> str | None:
    """Return the split that a task scores: lm-eval takes the test split before the validation split."""
    scored: str | None = task.get_config("test_split") or task.get_config("validation_split")
    return scored


def drawn_split(task: Task) -> str | None:
    """Return the split that few-shot examples are drawn from; None where they stand in the task itself."""
    own: Any = getattr(task, "fewshot_cfg", None)
    if own is not None and own.split is not None:
        return str(own.split)
    if own is not None and task.get_config("fewshot_config") is not None and own.samples is not None:
        return None
    names = (task.get_config(f"{split}_split") for split in ("training", "validation", "test"))
    return next((name for name in names if name is not None), None)


def _keeps_out(task: Task) -> bool:
    """Return whether the scored question is taken out of its examples: rows of the same form are compared."""
    own: Any = getattr(task, "fewshot_cfg", None)
    if own is None or own.split is None or own.split != task.get_config("test_split"):
        return False
    return own.process_docs is task.get_config("process_docs")


def items_among_their_shots(task: Task) -> set[int]:
    """Return the items, of a task whose requests are built, whose question stands in their prompt's examples, too."""
    found = set()
    for instance in task.instances if task.get_config("num_fewshot") else ():
        question = task.doc_to_text(instance.doc)
        if isinstance(question, str) and question.strip() and str(instance.args[0]).count(question) > 1:
            found.add(int(instance.doc_id))
    return found


def metrics_behind_exact_match(task: Task) -> tuple[str, ...]:
    """Return the metrics of a task with several targets that are not given the answer as it is."""
    if task.get_config("output_type") != "generate_until" or not getattr(task, "multiple_target", 0):
        return ()
    metrics = list(getattr(task, "_metric_fn_list", ()))
    return tuple(metrics[metrics.index("exact_match") + 1 :]) if "exact_match" in metrics else ()
