"""Single-answer grading of MT-Bench: what a judge is asked, the score in what it says, and the means. No torch.

Reference: fschat 0.2.36, llm_judge/common.py (``run_judge_single``, ``NEED_REF_CATS``, the score patterns),
gen_judgment.py (which prompt for which question and turn) and show_result.py (means). Deliberate differences:

- Where FastChat takes the reference answers of the judge's own name, they are named apart.
- A score that Python cannot read, such as ``[[07]]``, or one over a million, counts as not parsed; FastChat stops
  with an error.
- What a judge thinks aloud before its verdict is not read (:mod:`harness.evaluation.verdicts`).
- The means by category and over seven and eight categories are ours: FastChat has none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from harness.assets.mt_bench import NUM_TURNS, MTBench, Question
from harness.errors import HarnessError, near_miss
from harness.evaluation.verdicts import NOT_PARSED, Verdict, read_score
from harness.record import Score

REFERENCE_CATEGORIES = ("math", "reasoning", "coding")
"""Judged beside a reference answer. Source: ``NEED_REF_CATS``, less ``arena-hard-200``, which MT-Bench has not."""
OUTPUT_FORMAT = "[[rating]]"
WITHOUT_CODING = "coding"
"""The category that LISA's seven leave out. Source: LISA (2403.17919), its table of seven categories."""
TASK = "mt_bench"
MEAN, TURN = "mean", "turn {}"
EIGHT, SEVEN = "mean of 8 categories", "mean of 7 categories"
RANGE = (1, 10)


@dataclass(frozen=True)
class Grading:
    """One judgment to ask for."""

    question_id: int
    category: str
    turn: int
    """1 or 2."""
    prompt_name: str
    system_prompt: str
    user_prompt: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """Return the messages of a chat; FastChat leaves an empty system prompt out."""
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": self.user_prompt}]


@dataclass(frozen=True)
class Judged:
    """One judgment that was had."""

    question_id: int
    category: str
    turn: int
    repeat: int
    score: float


def gradings(bench: MTBench, answers: Mapping[int, tuple[str, str]], references: str) -> list[Grading]:
    """Return what a judge is asked of a run's answers: all first turns, then all second ones.

    Args:
        bench: Questions, prompts and references.
        answers: Both turns by question; questions without an answer are not asked.
        references: Who gave the reference answers.

    Raises:
        HarnessError: there are no such references, or no prompt or reference for a question.
    """
    given = bench.references_of(references)
    questions = [question for question in bench.questions if question.question_id in answers]
    return [
        _grading(bench, question, answers[question.question_id], given, turn)
        for turn in range(1, NUM_TURNS + 1)
        for question in questions
    ]


def _grading(
    bench: MTBench,
    question: Question,
    answers: tuple[str, str],
    references: Mapping[int, tuple[str, str]],
    turn: int,
) -> Grading:
    with_reference = question.category in REFERENCE_CATEGORIES
    name = ("single-math-v1" if with_reference else "single-v1") + ("-multi-turn" if turn == NUM_TURNS else "")
    if name not in bench.prompts:
        raise HarnessError(f"MT-Bench: there is no judge prompt '{name}'{near_miss(name, bench.prompts)}")
    prompt = bench.prompts[name]
    if turn == 1:
        values = {"question": question.turns[0], "answer": answers[0]}
    else:
        values = {
            f"{what}_{number}": text
            for what, texts in (("question", question.turns), ("answer", answers))
            for number, text in enumerate(texts, start=1)
        }
    if with_reference:
        if question.question_id not in references:
            raise HarnessError(f"MT-Bench: question {question.question_id} has no reference answer, and needs one")
        values |= {
            f"ref_answer_{number}": text for number, text in enumerate(references[question.question_id][:turn], start=1)
        }
    if unknown := [field for field in prompt.fields if field not in values]:
        raise HarnessError(f"MT-Bench: judge prompt '{name}' asks for '{unknown[0]}'{near_miss(unknown[0], values)}")
    text = prompt.prompt_template.format(**values)
    return Grading(question.question_id, question.category, turn, name, prompt.system_prompt, text)


def parse_score(judgment: str, verdict: Verdict = "first") -> float:
    """Return the score that a judgment gives, ``NOT_PARSED`` where there is none."""
    return read_score(judgment, verdict)


def is_parsed(judged: Judged) -> bool:
    """Return whether a score was read."""
    return judged.score != NOT_PARSED


def repeat_means(judged: Iterable[Judged]) -> tuple[float, ...]:
    """Return the mean of each repeat that has a parsed score, in order."""
    by_repeat: dict[int, list[float]] = defaultdict(list)
    for one in judged:
        if is_parsed(one):
            by_repeat[one.repeat].append(one.score)
    return tuple(fmean(by_repeat[repeat]) for repeat in sorted(by_repeat))


def mt_bench_scores(judged: Sequence[Judged], judge_identity: str) -> tuple[Score, ...]:
    """Return the means of a run's judgments, in points: those without a score are in none of them.

    Turn 1, turn 2 and mean as FastChat's ``show_result``; by category over both turns; and unweighted over the eight
    categories and over the seven without coding, where every one of them has a score.
    """
    parsed = [one for one in judged if is_parsed(one)]

    def score(metric: str, of: Sequence[Judged], value: float | None = None) -> Score:
        return Score(
            task=TASK,
            metric=metric,
            value=fmean(one.score for one in of) if value is None else value,
            stderr=_standard_error(of) if value is None else None,
            n=len(of),
            unit="points",
            higher_is_better=True,
            task_version=judge_identity,
            num_fewshot=None,
            headline=metric == MEAN,
        )

    def mean_over(names: Iterable[str]) -> float:
        return fmean(fmean(one.score for one in by_category[name]) for name in names)

    by_category: dict[str, list[Judged]] = {one.category: [] for one in judged}
    for one in parsed:
        by_category[one.category].append(one)
    scores = [
        score(TURN.format(turn), of)
        for turn in range(1, NUM_TURNS + 1)
        if (of := [one for one in parsed if one.turn == turn])
    ]
    if parsed:
        scores.append(score(MEAN, parsed))
    for metric, number, names in (
        (EIGHT, 8, list(by_category)),
        (SEVEN, 7, [name for name in by_category if name != WITHOUT_CODING]),
    ):
        if len(names) == number and all(by_category[name] for name in names):
            of = [one for name in names for one in by_category[name]]
            scores.append(score(metric, of, mean_over(names)))
    scores += [score(name, of) for name, of in by_category.items() if of]
    return tuple(scores)


def _standard_error(of: Sequence[Judged]) -> float | None:
    """Return the standard error of a mean over questions, whose turns and repeats are taken together.

    The questions are the sample: judgments of one question are no independent ones.
    """
    by_question: dict[int, list[float]] = defaultdict(list)
    for one in of:
        by_question[one.question_id].append(one.score)
    means = [fmean(scores) for scores in by_question.values()]
    return stdev(means) / sqrt(len(means)) if len(means) > 1 else None
