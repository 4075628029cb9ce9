"""Published tables: their files, and each verdict of a comparison, on records made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.catalogue.models import load_models
from harness.errors import HarnessError
from harness.evaluation.grading import MEAN, TASK
from harness.expansion import load_suite
from harness.record import Record
from harness.report.comparing.paper import Cell, Published, compare, read_table, table_names
from harness.report.reading.summary import summarize
from harness.report.statistics.intervals import t_interval
from harness.store import Contents
from harness.suite import labels_of
from tests.unit.fixtures_report.factory import CUDA, make_breakdown, make_record, make_suite, with_memory
from tests.unit.test_report_judging import judging

HEAD = (
    "paper,version,table,model,method,metric,value,unit,suite,our_model,our_label,our_quantity,tolerance_percent,"
    "not_comparable,source\n"
)


def published(value: float = 10.0, **changes: object) -> Published:
    known: dict[str, object] = {
        "paper": "P",
        "version": "v1",
        "table": "Table 1",
        "model": "M",
        "method": "Full",
        "metric": "peak",
        "unit": "G",
        "source": "somewhere, Table 1",
        "suite": "quick",
        "our_model": "tiny",
        "our_label": "full",
        "our_quantity": "peak_memory",
        "tolerance_percent": 5.0,
    }
    return Published.model_validate({**known, "value": value, **changes})


@pytest.mark.parametrize("name", table_names())
def test_a_packaged_table_names_suites_models_and_labels_that_there_are(name: str) -> None:
    table = read_table(name)
    assert len({(n.version, n.table, n.model, n.method, n.metric) for n in table}) == len(table)
    for number in table:
        assert number.source
        if number.suite is not None:
            suite = load_suite(number.suite)
            assert number.our_label in labels_of(suite, number.our_model or "")
            assert number.our_model in load_models()
            assert number.our_model in suite.models or number.not_comparable is not None


def test_what_could_not_be_obtained_is_listed_with_its_reason_and_has_no_number() -> None:
    cells = compare(read_table("not-obtained"), {})
    assert {cell.verdict for cell in cells} == {"not obtained"}
    assert all(cell.reason and cell.difference is None for cell in cells)
    with pytest.raises(ValueError, match="not_comparable must say why"):
        published(value="absent")  # type: ignore[arg-type]


def test_headline_claims_are_there() -> None:
    claims = {(n.version, n.metric): n.value for n in read_table("owlore-claims")}
    assert len({version for version, _ in claims}) == 3
    for version in {version for version, _ in claims}:
        assert claims[version, "Commonsense Reasoning: largest gain over baselines"] == 1.1
        assert claims[version, "MMLU: largest gain over baselines"] == 3.0
        assert claims[version, "MT-Bench: largest gain over baselines"] == 10.0
        assert claims[version, "memory of fine-tuning"] == 21.0


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("P,v,T,M,A,x,many,G,,,,,,none,here", "is 'many'"),
        ("P,v,T,M,A,x,1,G,s,,,,,,here", "go together"),
        ("P,v,T,M,A,x,1,G,,,,,,,here", "names neither where ours is to be found"),
        ("P,v,T,M,A,x,1,G,s,m,l,speed,,,here", "our_quantity 'speed' is none of"),
        ("P,v,T,M,A,x,OOM,G,s,m,l,weights,,,here", "value is OOM"),
        ("P,v,T,M,A,x,1,G,,,,,,none,", "source is None"),
        ("P,v,T,M,A,x,1,G,,,,,,none,here,more", "more"),
    ],
)
def test_a_row_that_is_not_valid_is_one_sentence_with_its_line(row: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(HEAD + row + "\n")
    with pytest.raises(HarnessError, match=r"mine\.csv line 2") as found:
        read_table(str(file))
    assert says in str(found.value)


def test_an_unknown_table_and_an_empty_file_are_said(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="did you mean 'lisa-memory'"):
        read_table("lisa-memry")
    (tmp_path / "empty.csv").write_text(HEAD)
    with pytest.raises(HarnessError, match="holds no numbers"):
        read_table(str(tmp_path / "empty.csv"))
    with pytest.raises(HarnessError, match="cannot be read"):
        read_table(str(tmp_path / "absent.csv"))


def cell(number: Published, records: tuple[Record, ...], seeds: tuple[int, ...] = (1,)) -> Cell:
    suite = make_suite(seeds=seeds)
    summaries = {"quick": summarize(suite, Contents(records))} if records else {}
    (found,) = compare([number], summaries)
    return found


def run(label: str = "full", **changes: Any) -> Record:
    return with_memory(make_record(label, **changes))


def test_ours_is_compared_in_the_published_unit() -> None:
    record = run(environment=CUDA)
    peak = make_breakdown("full").total_bytes / 1e9
    found = cell(published(peak * 1.04), (record,))
    assert (found.verdict, found.num_seeds, found.interval, found.reason) == ("within tolerance", 1, None, "")
    assert found.ours == pytest.approx(peak)
    assert found.difference == pytest.approx(-0.04 * peak)
    assert cell(published(peak * 1.06), (record,)).verdict == "differs"
    weights = published(1.0, our_quantity="weights", our_label="owlore")
    assert cell(weights, (run("owlore"),)).ours == 513 * 2**20 / 1e9
    state = published(1.0, our_quantity="optimizer_state")
    assert cell(state, (run(),)).ours == 2**30 / 1e9


def test_seeds_give_an_interval_and_what_is_missing_is_said() -> None:
    records = tuple(run(seed=seed, minute=seed) for seed in (1, 2, 3))
    values = [next(s.value for s in record.scores if s.task == "boolq") for record in records]
    low, high = t_interval(values)
    number = published((low + high) / 2 + (high - low) / 4, our_quantity="score:boolq:acc", tolerance_percent=None)
    found = cell(number, records, seeds=(1, 2, 3))
    assert (found.verdict, found.num_seeds) == ("within our interval", 3)
    assert found.interval == pytest.approx((low, high))
    assert found.ours == pytest.approx(sum(values) / 3)
    few = cell(number, records[:2], seeds=(1, 2, 3))
    assert (few.num_seeds, few.reason) == (2, "1 of 3 seeds have none")


def test_why_there_is_no_number_of_ours() -> None:
    assert (cell(published(), ()).verdict, cell(published(), ()).reason) == ("not measured", "not run")
    assert cell(published(), (run(),)).reason == "no CUDA device"
    failed = make_record("full", status="out_of_memory", reason="it ran out", environment=CUDA)
    assert (cell(published(), (failed,)).verdict, cell(published(), (failed,)).reason) == (
        "not measured",
        "out of memory",
    )
    assert cell(published(our_quantity="score:none:acc"), (run(),)).reason == "the records do not hold it"
    alone = published(suite=None, our_model=None, our_label=None, our_quantity=None, not_comparable="another model")
    assert (cell(alone, ()).verdict, cell(alone, ()).reason) == ("not comparable", "another model")


def test_what_does_not_compare_shows_ours_and_no_verdict_on_it() -> None:
    found = cell(published(0.001, not_comparable="another judge"), (run(environment=CUDA),))
    assert (found.verdict, found.reason) == ("not comparable", "another judge")
    assert found.ours is not None


def test_scores_of_several_judges_are_not_one() -> None:
    ours = run()

    def judged(points: float, judge: str = "gpt-4") -> Record:
        where = {"environment": ours.environment, "environment_id": ours.environment_id}
        return judging(ours, points, judge).model_copy(update=where)

    number = published(5.0, unit="points", our_quantity=f"score:{TASK}:{MEAN}", tolerance_percent=1.0)
    one = cell(number, (ours, judged(5.0)))
    assert (one.verdict, one.ours) == ("within tolerance", 5.0)
    two = cell(number, (ours, judged(5.0), judged(6.0, "another")))
    assert (two.verdict, two.ours) == ("not measured", None)
    assert two.reason == "several judges scored it, and their scores do not compare"
