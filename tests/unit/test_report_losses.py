"""Which losses can be told apart: against a textbook's table, the paired t-test, and what a report says of records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from scipy.stats import t, ttest_rel

from harness.quantities import GENERAL_LOSS, HELD_OUT_LOSS
from harness.report.pages.document import Paragraph, TableBlock
from harness.report.pages.losses import found_losses, losses_blocks, losses_of, losses_sentences, losses_table
from harness.report.pages.outcome import outcome_sentences
from harness.report.pages.page import report_document
from harness.report.reading.summary import Summary, summarize
from harness.report.statistics.blocked import blocked_means
from harness.store import Contents
from tests.unit.test_report_tables import make

# Montgomery, Design and Analysis of Experiments, vascular grafts: four pressures on six batches of resin
GRAFTS = np.array(
    [
        [90.3, 89.2, 98.2, 93.9, 87.4, 97.9],
        [92.5, 89.5, 90.6, 94.7, 87.0, 95.8],
        [85.5, 90.8, 89.6, 86.2, 88.0, 93.4],
        [82.5, 89.5, 85.6, 87.4, 78.9, 90.7],
    ]
)


def test_a_textbooks_block_design_has_its_published_means_and_error() -> None:
    found = blocked_means(GRAFTS)
    assert found.means == pytest.approx((92.82, 91.68, 88.92, 85.77), abs=0.006)
    assert found.spread**2 == pytest.approx(7.33, abs=0.005)  # the table's error mean square on 15 degrees
    assert found.smallest_apart == pytest.approx(4.08 * (7.33 / 6) ** 0.5, abs=0.01)  # q(0.05; 4, 15) of tables
    assert found.apart(0, 3) and found.apart(3, 0) and not found.apart(0, 1) and not found.apart(2, 3)


def test_of_two_labels_it_is_the_paired_t_test() -> None:
    draw = np.random.default_rng(3)
    for num_seeds in (2, 3, 7):
        values = draw.normal(size=(2, num_seeds)) + 5 * draw.normal(size=num_seeds)
        found = blocked_means(values)
        differences = values[0] - values[1]
        expected = t.ppf(0.975, num_seeds - 1) * differences.std(ddof=1) / num_seeds**0.5
        assert found.smallest_apart == pytest.approx(expected, rel=1e-3)
        assert found.needed[0][1] == pytest.approx(found.smallest_apart)
        assert found.apart(0, 1) == (ttest_rel(*values).pvalue < 0.05)


def test_what_a_seed_does_to_all_labels_alike_changes_nothing() -> None:
    moved = blocked_means(GRAFTS + np.arange(6) * 100.0)
    assert moved.spread == pytest.approx(blocked_means(GRAFTS).spread)
    assert np.allclose(moved.needed, blocked_means(GRAFTS).needed)


def test_a_pair_that_swings_more_than_the_others_needs_more_than_their_common_spread() -> None:
    steady = np.tile([1.0, 1.1, 1.2], (4, 1)) + np.array([0.0, 1.0, 2.0, 3.0])[:, None]
    swinging = np.array([[9.0, 12.0, 7.0]])
    found = blocked_means(np.vstack([steady, swinging]))
    own = np.var(swinging[0] - steady[0], ddof=1) / 2
    assert own > found.spread**2
    assert found.needed[0][4] == pytest.approx(found.smallest_apart * own**0.5 / found.spread)
    assert found.needed[0][1] == found.smallest_apart


LOSSES = {
    "full": (2.20, 2.25, 2.23),
    "lora": (2.21, 2.26, 2.24),
    "lisa": (2.50, 2.56, 2.52),
}


def record(label: str, seed: int, loss: float | None, **changes: Any) -> Any:
    made = make.make_record(label, seed=seed, minute=seed, **changes)
    read = {"validation_loss_before": 4.0, "validation_loss_after": loss, "general_loss_after": None}
    return made.model_copy(update={"train": made.train.model_copy(update=read)})


def summary_of(losses: Mapping[str, tuple[float | None, ...]], **changes: Any) -> Summary:
    records = [
        record(label, seed, loss, **changes)
        for label, values in losses.items()
        for seed, loss in enumerate(values, start=1)
    ]
    return summarize(make.make_suite(labels=tuple(losses), seeds=(1, 2, 3)), Contents(tuple(records)))


def test_a_report_says_which_labels_share_a_letter_and_how_near_is_too_near() -> None:
    summary = summary_of(LOSSES)
    (losses,) = found_losses(summary)["tiny"]
    assert losses.quantity is HELD_OUT_LOSS and losses.seeds == (1, 2, 3)
    assert losses.pairs_apart == {frozenset({"full", "lisa"}), frozenset({"lora", "lisa"})}
    table = losses_table(losses)
    assert [row[0] for row in table.rows] == ["full", "lora", "lisa"]
    assert str(table.rows[0][2]) == "2.2000 to 2.2500"
    assert [row[3] for row in table.rows] == ["a", "a", "b"]


def test_labels_nearer_than_seeds_move_them_are_not_told_apart() -> None:
    summary = summary_of({"full": (2.20, 2.25, 2.23), "lora": (2.24, 2.22, 2.24), "lisa": (3.0, 3.1, 3.05)})
    (losses,) = found_losses(summary)["tiny"]
    assert frozenset({"full", "lora"}) not in losses.pairs_apart
    assert [row[3] for row in losses_table(losses).rows] == ["a", "a", "b"]
    assert losses_sentences([losses]) == [
        "2 of 3 pairs of labels on the same seeds can be told apart by their held-out loss."
    ]
    assert losses_sentences([losses])[0] in outcome_sentences(summary, {}, found_losses(summary))
    (caption,) = [
        block.caption for block in losses_blocks(summary, found_losses(summary)) if isinstance(block, TableBlock)
    ]
    assert caption is not None and f"Nothing nearer than {losses.blocked.smallest_apart:.4f} nats" in caption


def test_a_label_that_lacks_a_seed_is_left_out_by_name() -> None:
    summary = summary_of({**LOSSES, "galore": (2.3, 2.4)})
    (losses,) = found_losses(summary)["tiny"]
    assert losses.labels == ("full", "lora", "lisa") and losses.left_out == ("galore",)
    said = [block.text for block in losses_blocks(summary, {"tiny": [losses]}) if isinstance(block, Paragraph)]
    assert said == ["Not compared: galore."]


def test_the_seeds_are_those_that_tell_most() -> None:
    summary = summary_of({"full": (2.20, 2.25, 2.23), "lora": (2.21, 2.26), "lisa": (2.50, 2.56)})
    losses = losses_of(summary.rows_of("tiny"), HELD_OUT_LOSS)
    assert losses is not None and losses.labels == ("full", "lora", "lisa") and losses.seeds == (1, 2)


def test_seeds_that_two_labels_share_are_enough() -> None:
    full = [record("full", seed, loss) for seed, loss in ((1, 2.2), (2, 2.3), (3, 2.25))]
    lora = [record("lora", seed, loss) for seed, loss in ((2, 2.4), (3, 2.35), (4, 2.5))]
    suite = make.make_suite(labels=("full", "lora"), seeds=(1, 2, 3, 4))
    losses = losses_of(summarize(suite, Contents((*full, *lora))).rows_of("tiny"), HELD_OUT_LOSS)
    assert losses is not None and losses.seeds == (2, 3)


@pytest.mark.parametrize("wild", [(3.9, 7.5, 3.8), (float("nan"), 2.3, 2.3), (float("inf"),) * 3])
def test_a_label_that_came_to_nothing_is_named_and_hides_nothing(wild: tuple[float, ...]) -> None:
    summary = summary_of({**LOSSES, "galore": wild})
    (losses,) = found_losses(summary)["tiny"]
    assert losses.left_out == ("galore",)
    assert losses.blocked == found_losses(summary_of(LOSSES))["tiny"][0].blocked


@pytest.mark.parametrize(
    "change",
    [{"sequence_length": 64}, {"batch_size": 7}, {"validation_rows": 3}, {"prompt": "plain"}, {"dtype": "bf16"}],
)
def test_a_label_on_other_rows_batches_or_precision_is_not_compared(change: dict[str, Any]) -> None:
    records = [
        record(label, seed, loss, **({"spec": {"train": made_train(change)}} if label == "galore" else {}))
        for label, values in {**LOSSES, "galore": (2.3, 2.35, 2.32)}.items()
        for seed, loss in enumerate(values, start=1)
    ]
    suite = make.make_suite(labels=(*LOSSES, "galore"), seeds=(1, 2, 3))
    (losses,) = found_losses(summarize(suite, Contents(tuple(records))))["tiny"]
    assert losses.labels == tuple(LOSSES) and losses.left_out == ("galore",)


def made_train(change: dict[str, Any]) -> Any:
    return make.make_record("full").spec.train.model_copy(update=change)


def test_losses_that_are_alike_but_for_rounding_are_not_told_apart() -> None:
    (losses,) = found_losses(summary_of({"full": (2.2, 2.3, 2.4), "lora": (2.20001, 2.30001, 2.40001)}))["tiny"]
    assert not losses.pairs_apart and losses.blocked.smallest_apart == 1e-4


def test_one_seed_or_one_label_or_no_loss_has_no_table() -> None:
    for losses in (
        {"full": (2.2,), "lora": (2.3,)},
        {"full": (2.2, 2.3)},
        {"full": (None, None), "lora": (None, None)},
    ):
        summary = summary_of(losses)
        assert found_losses(summary) == {}
        assert losses_of(summary.rows_of("tiny"), GENERAL_LOSS) is None
        assert "Which losses can be told apart" not in str(report_document(summary, {}))


def test_the_page_has_the_section_and_its_definition() -> None:
    text = str(report_document(summary_of(LOSSES), {}))
    assert "Which losses can be told apart" in text and "Tukey" in text
