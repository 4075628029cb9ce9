"""What a judge is asked, the score in its answer, and means computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.assets.mt_bench import load_mt_bench
from harness.errors import HarnessError
from harness.evaluation.grading import Judged, gradings, mt_bench_scores, parse_score, repeat_means
from harness.evaluation.verdicts import has_several, thinks
from tests.mt_bench import CATEGORIES, SYSTEM, write_bench


def test_prompts_follow_category_and_turn(tmp_path: Path) -> None:
    bench = load_mt_bench(write_bench(tmp_path))
    answers = {question.question_id: ("an {answer}", "another") for question in bench.questions}
    asked = gradings(bench, answers, "gpt-4")
    assert [grading.turn for grading in asked] == [1] * 8 + [2] * 8
    assert {(g.category, g.turn): g.prompt_name for g in asked if g.category in ("stem", "coding")} == {
        ("stem", 1): "single-v1",
        ("stem", 2): "single-v1-multi-turn",
        ("coding", 1): "single-math-v1",
        ("coding", 2): "single-math-v1-multi-turn",
    }
    first = asked[3]
    assert first.user_prompt == "[ref ref {1}][question math é {one}?][answer an {answer}]"
    assert asked[8].user_prompt == "[writing é {one}?][an {answer}][writing two?][another]"
    assert first.messages == [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": first.user_prompt},
    ]


def test_only_what_was_answered_is_asked(tmp_path: Path) -> None:
    bench = load_mt_bench(write_bench(tmp_path))
    assert len(gradings(bench, {81: ("a", "b")}, "gpt-4")) == 2
    with pytest.raises(HarnessError, match="no reference answers of 'gpt-4o'"):
        gradings(bench, {81: ("a", "b")}, "gpt-4o")


@pytest.mark.parametrize(
    ("judgment", "score"),
    [
        ("Rating: [[7]]", 7),
        ("Rating: [[7.5]] and [[2]]", 7.5),
        ("[3] but then [[8]]", 8),
        ("so [6] it is", 6),
        ("[[10]]", 10),
        ("[[7/10]] [4]", 4),
        ("[[ 7 ]]", -1),
        ("[[-3]]", -1),
        ("[[07]]", -1),
        ("[[７]]", -1),
        ("7", -1),
        ("", -1),
        ("[[seven]]", -1),
        ("[[7.]]", 7.0),
    ],
)
def test_the_score_of_a_judgment(judgment: str, score: float) -> None:
    assert parse_score(judgment) == score


THOUGHT = "<think>The format asked for: Rating: [[5]].</think>\n\nExact. "


@pytest.mark.parametrize(
    ("judgment", "first", "last", "several", "thought"),
    [
        (f"{THOUGHT}Rating: [[9]]", 9, 9, False, True),
        ("\n<THINK>[[5]]</THINK>Rating: [[9]]", 9, 9, False, True),
        ("<thinking>[[5]]</thinking>[[9]]", 9, 9, False, True),
        ("It begins in the prompt: [[5]]</think>\nRating: [[9]]", 9, 9, False, True),
        ("<think>It never ends, as with [[5]]", -1, -1, False, True),
        ("<think>[[5]]</think>No verdict.", -1, -1, False, True),
        ("<Think>As in [[5]].</think> Rating: [[7]]", 7, 7, False, True),
        ("Rating: [[4]]. The answer holds </think>, which is odd.", 4, 4, False, False),
        ("The answer says <think>[[3]]</think>. Rating: [[6]]", 6, 6, False, True),
        ("The format is [[5]]. Rating: [[9]]", 5, 9, True, False),
        ("Rating: [[7]]. To repeat: [[7.0]]", 7, 7, False, False),
        (f"{THOUGHT}First [[4]], no, [[6]]", 4, 6, True, True),
        ("[3] but then [[8]]", 8, 8, False, False),
        ("[3] or [4]", 3, 4, True, False),
        ("Rating: [[7]]", 7, 7, False, False),
    ],
)
def test_which_rating_is_the_verdict(judgment: str, first: float, last: float, several: bool, thought: bool) -> None:
    assert (parse_score(judgment), parse_score(judgment, "last")) == (first, last)
    assert (has_several(judgment), thinks(judgment)) == (several, thought)


def judged(**points: tuple[float, float]) -> list[Judged]:
    """Return two judgments a category, of the first and the second turn."""
    return [
        Judged(number, category, turn, 0, score)
        for number, (category, both) in enumerate(points.items())
        for turn, score in enumerate(both, start=1)
    ]


def test_means_are_those_computed_by_hand() -> None:
    points = dict(zip(CATEGORIES, [(1, 3), (2, 4), (3, 3), (5, -1), (10, 8), (6, 6), (7, 9), (-1, 8)], strict=True))
    scores = {score.metric: score for score in mt_bench_scores(judged(**points), "a judge")}  # type: ignore[arg-type]
    assert scores["turn 1"].value == pytest.approx((1 + 2 + 3 + 5 + 10 + 6 + 7) / 7)
    assert scores["turn 2"].value == pytest.approx((3 + 4 + 3 + 8 + 6 + 9 + 8) / 7)
    assert scores["mean"].value == pytest.approx((34 + 41) / 14)
    categories = [2, 3, 3, 5, 9, 6, 8, 8]
    assert [scores[name].value for name in CATEGORIES] == categories
    assert scores["mean of 8 categories"].value == pytest.approx(44 / 8)
    assert scores["mean of 7 categories"].value == pytest.approx((44 - 9) / 7)
    assert {metric: score.n for metric, score in scores.items() if metric.startswith(("mean", "turn", "math"))} == {
        "turn 1": 7,
        "turn 2": 7,
        "mean": 14,
        "mean of 8 categories": 14,
        "mean of 7 categories": 12,
        "math": 1,
    }
    assert [score.metric for score in scores.values() if score.headline] == ["mean"]


def test_a_category_without_a_score_leaves_the_means_over_categories_out() -> None:
    points = dict.fromkeys(CATEGORIES, (5.0, 5.0)) | {"coding": (-1.0, -1.0)}
    metrics = {score.metric for score in mt_bench_scores(judged(**points), "a judge")}
    assert "mean of 8 categories" not in metrics
    assert "mean of 7 categories" in metrics
    assert "coding" not in metrics
    assert "mean of 7 categories" not in {s.metric for s in mt_bench_scores(judged(stem=(1, 2), math=(3, 4)), "j")}


def test_the_standard_error_is_over_questions() -> None:
    (score,) = (s for s in mt_bench_scores(judged(a=(1, 3), b=(4, 6), c=(9, 7)), "a judge") if s.metric == "mean")
    assert score.stderr == pytest.approx((((2 - 5) ** 2 + 0 + (8 - 5) ** 2) / 2) ** 0.5 / 3**0.5)


def test_repeats_have_means_of_their_own_without_what_was_not_parsed() -> None:
    one = [Judged(1, "a", 1, repeat, score) for repeat, score in ((0, 4), (0, -1), (1, 6), (1, 7))]
    assert repeat_means(one) == (4, 6.5)


def test_nothing_parsed_gives_no_score() -> None:
    assert mt_bench_scores(judged(a=(-1, -1)), "a judge") == ()
