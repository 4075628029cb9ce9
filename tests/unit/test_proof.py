"""What the checks of a proof say of a fault in one place and of old records, and where the judgement is shown."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness import cli
from harness.declaration import Declaration, DeclaredPart, DeclaredProjection, DeclaredSampling
from harness.proof import Check, Judgement, judge, judge_record
from harness.record import OUTCOMES, Proof, Record
from harness.record_training import BlockActivity, StepCurve, TrainResult
from harness.report.comparing.compare import compare_sides
from harness.report.comparing.history import history
from harness.report.pages.terminal import terminal_table
from harness.report.reading.sides import Side
from harness.report.write import write_report
from harness.runs.executor import Tally
from harness.store import Contents, Store, has_outcome, parse_files
from tests.records import make_record
from tests.unit.test_report_tables import make

RECORDS = Path(__file__).parents[2] / "results" / "records"
FIXTURES = Path(__file__).parent / "fixtures_records"
STEPS = 6
DRAWS = [(0, (0, 1)), (2, (1, 2)), (4, (1, 2))]
"""Block 1 is drawn three times in a row, block 3 never."""
BLOCK = DeclaredPart(num_params=1000, num_vector_params=10, dtypes=("float32",), state_bytes=80)
NORM = DeclaredPart(num_params=10, num_vector_params=10, dtypes=("float32",), state_bytes=8)
MATRICES = tuple(f"layers.{index}.weight" for index in range(4))


def training(**changes: Any) -> TrainResult:
    """Return a training of four blocks with a final norm, states dropped, as it must be observed."""
    curve: dict[str, Any] = {
        "loss": (1.0,) * STEPS,
        "learning_rate": (1e-3,) * STEPS,
        "grad_norm": (None,) * STEPS,
        "trained_tokens": (8,) * STEPS,
        "tokens": (8,) * STEPS,
        "seconds": (1.0,) * STEPS,
        "trainable_params": (2010,) * STEPS,
        "optimizer_state_bytes": (168,) * STEPS,
        "optimizer_state_host_bytes": (0,) * STEPS,
    }
    values: dict[str, Any] = {
        "num_steps": STEPS,
        "block_activity": (BlockActivity(step=0, blocks=(0, 1)), BlockActivity(step=2, blocks=(1, 2))),
        "num_blocks": 4,
        "step_seconds_mean": 1.0,
        "step_seconds_median": 1.0,
        "num_timed_steps": 3,
        "data_seconds": 0.0,
        "trainable_params_mean": 2010.0,
        "trainable_params_ever": 3010,
        "total_params": 5000,
        "peak_optimizer_state_bytes": 168,
    }
    own = {key: value for key, value in changes.items() if key in values}
    rest = {key: value for key, value in changes.items() if key not in values}
    return TrainResult(**{**values, **own, "curve": StepCurve(**{**curve, **rest})})


def declaration(**changes: Any) -> Declaration:
    blocks = tuple(BLOCK.model_copy(update={"projected": (name,)}) for name in MATRICES)
    values: dict[str, Any] = {
        "blocks": blocks,
        "others": {"final_norm": NORM},
        "sampling": DeclaredSampling(interval_steps=2, num_active=2, state_policy="drop"),
        "projection": DeclaredProjection(update_gap=3, update_gap_counter="parameter", refresh_on_activation=False),
    }
    return Declaration(**{**values, **changes})


def reported(**changes: Any) -> dict[str, Any]:
    counts = {0: (1, 2), 1: (2, 6), 2: (2, 4), 3: (0, 0)}
    projected = {MATRICES[i]: {"num_refreshes": r, "num_updates": u} for i, (r, u) in counts.items()}
    draws = [{"step": step, "blocks": list(blocks)} for step, blocks in DRAWS]
    return {"draws": draws, "projected": projected, **changes}


def proof(**changes: Any) -> Proof:
    values: dict[str, Any] = {
        "block_checksums_before": ("a", "b", "c", "d"),
        "block_checksums_after": ("A", "B", "C", "d"),
        "other_checksums_before": {"embedding": "e", "final_norm": "n", "head": "h"},
        "other_checksums_after": {"embedding": "e", "final_norm": "N", "head": "h"},
        "ever_trainable_blocks": (0, 1, 2),
        "ever_trainable_others": ("final_norm",),
        "optimizer_state_bytes": 168,
        "method": reported(),
        "declared": declaration(),
    }
    return Proof(**{**values, **changes})


def verdicts(judgement: Judgement) -> dict[str, str]:
    return {check.name: check.verdict for check in judgement.checks}


def test_what_is_as_declared_holds_in_every_check() -> None:
    judgement = judge(training(), proof())
    assert verdicts(judgement) == dict.fromkeys(
        ["frozen parts", "trained parts", "trainable counts", "draws", "optimizer state", "projectors"], "passed"
    )
    assert judgement.sentence() == judgement.summary() == "the proof holds in all 6 checks"


TRAIN_FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"num_steps": 7}, "trainable counts", "7 steps are stated, the curve holds 6"),
    ({"trainable_params_mean": 2000.0}, "trainable counts", "2,000.0 parameters a step are stated"),
    ({"trainable_params_ever": 5000}, "trainable counts", "5,000 parameters were ever trainable, declared are 3,010"),
    ({"peak_optimizer_state_bytes": 100}, "optimizer state", "100 bytes are stated as the peak of 168"),
    ({"optimizer_state_bytes": (168, 168, 248, 168, 168, 168), "peak_optimizer_state_bytes": 248}, "optimizer state",
     "after step 2 it takes 248 bytes on the device, declared are 168"),
    ({"optimizer_state_host_bytes": (0, 0, 0, 0, 0, 80)}, "optimizer state", "takes 80 bytes on the host"),
    ({"block_activity": (BlockActivity(step=0, blocks=(0, 1)), BlockActivity(step=3, blocks=(1, 2)))}, "draws",
     "at step 2 [1, 2] were drawn, and [0, 1] trained"),
]  # fmt: skip
PROOF_FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"block_checksums_after": ("A", "B", "C", "D")}, "frozen parts", "changed without being trained: block 3"),
    ({"block_checksums_after": ("a", "B", "c", "d")}, "trained parts", "trained without any change: blocks 0 and 2"),
    ({"other_checksums_after": {"embedding": "E", "final_norm": "N", "head": "h"}}, "frozen parts", ": embedding"),
    ({"other_checksums_after": {"embedding": "e", "final_norm": "n", "head": "h"}}, "trained parts", ": final_norm"),
    ({"ever_trainable_blocks": (0, 1, 2, 3), "block_checksums_after": ("A", "B", "C", "D")}, "trainable counts",
     "3 blocks were trainable at some step, 4 are stated"),
    ({"optimizer_state_bytes": 167}, "optimizer state", "167 bytes are stated as the last of 168"),
    ({"method": reported(draws=None)}, "draws", "the method reports no draws"),
    ({"method": reported(draws=[{"step": 0, "blocks": [0, 1]}])}, "draws", "1 draws are reported"),
    ({"method": reported(projected=None)}, "projectors", "the method reports no projected matrix"),
    ({"declared": declaration(projection=None)}, "projectors", "matrices are projected, and none was declared to be"),
    ({"method": reported(adapters={"found": ["x"], "moved": ["x"]})}, "adapters", "adapters are reported, and none"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "check", "sentence"), TRAIN_FAULTS)
def test_a_fault_in_what_was_observed_is_told(changes: dict[str, Any], check: str, sentence: str) -> None:
    failed = judge(training(**changes), proof()).failed
    assert check in [found.name for found in failed]
    assert any(sentence in found.sentence for found in failed), failed


def test_a_state_that_is_wrong_at_one_step_alone_is_found() -> None:
    for step in range(STEPS):
        held = tuple(168 + (index == step) for index in range(STEPS))
        observed = training(optimizer_state_bytes=held, peak_optimizer_state_bytes=169)
        (failed,) = judge(observed, proof(optimizer_state_bytes=held[-1])).failed
        assert failed.sentence == f"after step {step} it takes 169 bytes on the device, declared are 168"


@pytest.mark.parametrize(("changes", "check", "sentence"), PROOF_FAULTS)
def test_a_fault_in_the_proof_is_told_by_its_check_alone(changes: dict[str, Any], check: str, sentence: str) -> None:
    judgement = judge(training(), proof(**changes))
    (failed,) = judgement.failed
    assert failed.name == check
    assert sentence in failed.sentence
    assert judgement.sentence() == f"{judgement.summary()}: {check}: {failed.sentence}"


@pytest.mark.parametrize(
    ("projection", "due"),
    [
        # Block 0 is trained at steps 0 and 1, block 1 at every step, block 2 at steps 2 to 5.
        ({"update_gap": 1}, (2, 6, 4, 0)),
        ({"update_gap": 4}, (1, 2, 1, 0)),
        ({"update_gap": 5, "update_gap_counter": "global"}, (1, 2, 2, 0)),
        ({"update_gap": 2, "update_gap_counter": "global"}, (1, 3, 2, 0)),
        ({"update_gap": 9, "refresh_on_activation": True}, (1, 1, 1, 0)),
    ],
)
def test_projectors_are_due_as_the_gap_says(projection: dict[str, Any], due: tuple[int, ...]) -> None:
    settings = {"update_gap_counter": "parameter", "refresh_on_activation": False, **projection}
    declared = declaration(projection=DeclaredProjection(**settings))

    def verdict(*refreshes: int) -> str:
        pairs = zip(MATRICES, zip(refreshes, (2, 6, 4, 0), strict=True), strict=True)
        projected = {name: {"num_refreshes": count, "num_updates": updates} for name, (count, updates) in pairs}
        return verdicts(judge(training(), proof(declared=declared, method=reported(projected=projected))))["projectors"]

    assert verdict(*due) == "passed"
    for block in range(4):
        assert verdict(*(count + (index == block) for index, count in enumerate(due))) == "failed"


@pytest.mark.parametrize("policy", ["drop", "refresh"])
def test_a_block_that_comes_back_is_due_a_projector_where_its_last_one_went(policy: str) -> None:
    away = (BlockActivity(step=0, blocks=(0,)), BlockActivity(step=2, blocks=(1,)), BlockActivity(step=4, blocks=(0,)))
    for forgets, refreshes in ((True, 2), (False, 1)):
        declared = declaration(
            sampling=DeclaredSampling(
                interval_steps=2, num_active=1, state_policy="drop" if forgets and policy == "drop" else "keep"
            ),
            projection=DeclaredProjection(
                update_gap=9, update_gap_counter="parameter", refresh_on_activation=forgets and policy == "refresh"
            ),
        )
        projected = {name: {"num_refreshes": 0, "num_updates": 0} for name in MATRICES}
        projected[MATRICES[0]] = {"num_refreshes": refreshes, "num_updates": 4}
        projected[MATRICES[1]] = {"num_refreshes": 1, "num_updates": 2}
        found = judge(training(block_activity=away), proof(declared=declared, method=reported(projected=projected)))
        assert verdicts(found)["projectors"] == "passed", found.sentence()


@pytest.mark.parametrize(
    ("policy", "device", "host"),
    [
        ("drop", (168,) * 6, (0,) * 6),
        ("keep", (168, 168, 248, 248, 248, 248), (0,) * 6),
        ("offload", (168,) * 6, (0, 0, 80, 80, 80, 80)),
    ],
)
def test_the_state_of_blocks_that_are_left_is_where_the_policy_says(
    policy: Any, device: tuple[int, ...], host: tuple[int, ...]
) -> None:
    for other in ("drop", "keep", "offload"):
        sampling = DeclaredSampling(interval_steps=2, num_active=2, state_policy=other)  # type: ignore[arg-type]
        observed = training(
            optimizer_state_bytes=device, optimizer_state_host_bytes=host, peak_optimizer_state_bytes=max(device)
        )
        given = proof(declared=declaration(sampling=sampling), optimizer_state_bytes=device[-1])
        assert verdicts(judge(observed, given))["optimizer state"] == ("passed" if other == policy else "failed")


@pytest.mark.parametrize(
    ("dtype", "rate", "must"), [("float32", 1e-9, True), ("float32", 1e-11, False), ("bfloat16", 1e-4, True),
                                ("bfloat16", 1e-7, False)],
)  # fmt: skip
def test_a_part_may_stay_where_its_updates_round_away(dtype: str, rate: float, must: bool) -> None:
    part = BLOCK.model_copy(update={"dtypes": (dtype,), "num_params": 1000})
    declared = declaration(blocks=(part,) * 4, projection=None, sampling=None)
    still = proof(
        declared=declared, block_checksums_after=("a", "b", "c", "d"), method={}, other_checksums_after=
        {"embedding": "e", "final_norm": "N", "head": "h"},
    )  # fmt: skip
    found = verdicts(judge(training(learning_rate=(rate,) * STEPS), still))["trained parts"]
    assert found == ("failed" if must else "passed")


@pytest.mark.parametrize(
    "idle", [{"learning_rate": (0.0,) * STEPS}, {"grad_norm": (0.0,) * STEPS}, {"trained_tokens": (0,) * STEPS}]
)
def test_what_had_no_update_need_not_move(idle: dict[str, Any]) -> None:
    still = proof(block_checksums_after=("a", "b", "c", "d"))
    assert verdicts(judge(training(), still))["trained parts"] == "failed"
    assert verdicts(judge(training(**idle), still))["trained parts"] == "passed"


@pytest.mark.parametrize(
    ("damping", "norm", "clip", "must"),
    [(1e-8, 1.0, None, True), (1e6, 1.0, None, False), (1e6, None, None, False), (1e-8, 1.0, 1e-12, False),
     (1e-8, 1e-12, None, False), (0.0, 1e-12, 1e-12, True)],
)  # fmt: skip
def test_what_gradients_too_small_for_the_damping_moved_need_not_show(
    damping: float, norm: float | None, clip: float | None, must: bool
) -> None:
    still = proof(
        declared=declaration(damping=damping),
        other_checksums_after={"embedding": "e", "final_norm": "n", "head": "h"},
    )
    found = verdicts(judge(training(grad_norm=(norm,) * STEPS), still, clip))
    assert found["trained parts"] == ("failed" if must else "passed")


def test_of_a_method_that_declares_nothing_all_may_stay_where_updates_round_away() -> None:
    still = proof(declared=None, block_checksums_after=("a", "b", "c", "d"), other_checksums_after=
                  {"embedding": "e", "final_norm": "n", "head": "h"})  # fmt: skip
    found = verdicts(judge(training(learning_rate=(1e-8,) * STEPS), still))
    assert found["trained parts"] == "not judged"


def test_a_block_that_was_trained_only_while_the_rate_was_zero_need_not_move() -> None:
    rates = (0.0, 0.0, 1e-3, 1e-3, 1e-3, 1e-3)
    for after, verdict in (("a", "B", "C", "d"), "passed"), (("A", "B", "c", "d"), "failed"):
        found = judge(training(learning_rate=rates), proof(block_checksums_after=after))
        assert verdicts(found)["trained parts"] == verdict


ADAPTERS: list[tuple[dict[str, Any], str]] = [
    ({"found": ["q", "v"], "moved": ["q", "v"]}, ""),
    ({"found": ["q"], "moved": ["q"]}, "v has no adapter"),
    ({"found": ["q", "v", "o"], "moved": ["q", "v", "o"]}, "o has an adapter that was not declared"),
    ({"found": ["q", "v"], "moved": ["q"]}, "the adapter of v did not move"),
    ({"found": "qv", "moved": None}, "the method reports no adapter"),
]


@pytest.mark.parametrize(("said", "sentence"), ADAPTERS)
def test_adapters_are_those_declared_and_each_moved(said: dict[str, Any], sentence: str) -> None:
    declared = declaration(projection=None, adapters=("q", "v"))
    given = proof(
        declared=declared,
        method={"draws": reported()["draws"], "adapters": said},
        base_checksums_before=("a", "b", "c", "d"),
        base_checksums_after=("a", "b", "c", "d"),
    )
    judgement = judge(training(), given)
    assert verdicts(judgement)["base weights"] == "passed"
    assert [check.sentence for check in judgement.failed] == ([sentence] if sentence else [])
    moved = given.model_copy(update={"base_checksums_after": ("a", "b", "X", "d")})
    assert verdicts(judge(training(), moved))["base weights"] == "failed"
    absent = given.model_copy(update={"base_checksums_before": (), "base_checksums_after": ()})
    assert verdicts(judge(training(), absent))["base weights"] == "not judged"


def test_without_a_declaration_the_rest_is_judged_and_nothing_else_passes() -> None:
    judgement = judge(training(), proof(declared=None))
    assert verdicts(judgement) == {
        "frozen parts": "passed",
        "trained parts": "not judged",
        "trainable counts": "not judged",
        "draws": "passed",
        "optimizer state": "not judged",
        "projectors": "not judged",
    }
    assert not judgement.is_whole and not judgement.failed
    assert judgement.sentence() == (
        "the proof holds in 2 of 6 checks; the others could not be judged: trained parts, trainable counts, optimizer "
        "state, projectors: the method declared nothing of the run"
    )
    still = proof(declared=None, block_checksums_after=("a", "b", "c", "d"), other_checksums_after=
                  {"embedding": "e", "final_norm": "n", "head": "h"})  # fmt: skip
    assert judge(training(), still).failed == (Check("trained parts", "failed", "nothing at all changed"),)


def test_a_proof_that_holds_nothing_is_not_judged_at_all() -> None:
    for observed in (training(), training(num_steps=7, trainable_params_mean=1.0)):
        checks = judge(observed, Proof()).checks
        assert {(check.verdict, check.sentence) for check in checks} == {("not judged", "the record holds no proof")}


@pytest.mark.parametrize(
    "method",
    [
        {"draws": [{"step": "x", "blocks": None}], "projected": {MATRICES[0]: 3}, "adapters": [1]},
        {"draws": [[0, 1]], "projected": [1, 2]},
        {"draws": {"step": 0}, "projected": "all"},
        {"draws": [{"step": -5, "blocks": [99, -1]}, {"step": 10**30, "blocks": []}], "projected": {}},
    ],
)
def test_a_method_that_reports_what_cannot_be_read_fails_and_breaks_nothing(method: dict[str, Any]) -> None:
    assert {"draws", "projectors"} <= {check.name for check in judge(training(), proof(method=method)).failed}
    assert not judge(training(), proof(method=method, declared=None)).is_whole


def test_curves_of_unequal_lengths_are_not_judged() -> None:
    cut = training(trainable_params=(2010,), optimizer_state_host_bytes=(), learning_rate=())
    found = verdicts(judge(cut, proof()))
    assert (found["trainable counts"], found["optimizer state"]) == ("not judged", "not judged")


def test_what_did_not_train_to_an_end_has_no_judgement() -> None:
    assert judge_record(make_record(train=training(), proof=proof(), status="out_of_memory")) is None
    assert judge_record(make_record()) is None
    assert judge_record(make_record(train=training(), proof=proof())) is not None


NOT_WHOLE = {
    "full", "lora", "lora-fa", "dora", "galore", "galore-layerwise", "lisa", "lisa-paper", "lisa-d", "lisa-matched",
    "ows-fullrank", "owlore", "owlore-code",
}  # fmt: skip
"""Committed records of schema version 1: their methods declared nothing, so that only part of each can be judged."""


def test_every_committed_record_passes_as_far_as_it_can_be_judged() -> None:
    later = [judge_record(r) for r in Store(RECORDS).read().records if r.spec.suite != "configurations"]
    assert later and all(judgement is None or not judgement.failed for judgement in later)
    assert all(judgement is None or judgement.is_whole for judgement in later)
    records = Store(RECORDS).read("configurations").records
    judged = {record.spec.label: judge_record(record) for record in records}
    assert {label for label, judgement in judged.items() if judgement is None} == {"base"}
    assert {label for label, judgement in judged.items() if judgement is not None and judgement.failed} == set()
    assert {label for label, judgement in judged.items() if judgement and not judgement.is_whole} == NOT_WHOLE
    for judgement in filter(None, judged.values()):
        assert verdicts(judgement)["frozen parts"] == "passed"
        missing = set() if judgement.is_whole else {"the method declared nothing of the run"}
        assert {check.sentence for check in judgement.not_judged} == missing
    assert all(verdicts(judged[label])["draws"] == "passed" for label in ("lisa", "owlore", "lisa-paper"))  # type: ignore[arg-type]


def test_every_rival_ran_once_and_was_judged_wholly() -> None:
    records = Store(RECORDS / "rivals").read().records
    assert {record.spec.label for record in records} >= {"badam", "grass", "ist", "apollo", "fira", "qlora", "pissa"}
    for record in records:
        judgement = judge_record(record)
        assert record.status == "ok" and judgement is not None
        assert judgement.is_whole and not judgement.failed, record.spec.label


def of_version_5() -> dict[str, Record]:
    data = (FIXTURES / "version-5.jsonl").read_bytes()
    return {record.spec.label: record for record in parse_files([("version-5.jsonl", data)]).records}


def test_records_with_all_facts_are_judged_wholly() -> None:
    records = of_version_5()
    assert {label: record.status for label, record in records.items()} == {
        "base": "ok",
        "owlore": "ok",
        "lora": "ok",
        "lisa": "unproven",
    }
    for label in ("owlore", "lora"):
        judgement = judge_record(records[label])
        assert judgement is not None and judgement.is_whole, judgement
    unproven = judge_record(records["lisa"])
    assert unproven is not None and unproven.sentence() == records["lisa"].reason
    assert judge_record(records["base"]) is None


def spoilt(record: Record) -> Record:
    """Return a record that was taken for ok though a block that was never trained changed."""
    assert record.proof is not None
    wrong = record.proof.model_copy(update={"ever_trainable_blocks": (0,)})
    return record.model_copy(update={"status": "ok", "reason": None, "proof": wrong})


def test_an_unproven_run_is_an_outcome_that_fails_the_call_and_is_run_again_on_request() -> None:
    record = of_version_5()["lisa"]
    assert "unproven" in OUTCOMES
    assert Tally((record,)).exit_code == 1
    assert Tally((of_version_5()["lora"],)).exit_code == 0
    assert has_outcome((record,), record.run_id, None, frozenset())
    assert not has_outcome((record,), record.run_id, None, frozenset({"unproven"}))


def test_show_says_the_judgement_and_each_check_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = of_version_5()
    store = Store(tmp_path)
    for record in (records["lora"], records["lisa"], spoilt(records["owlore"])):
        store.append(record)

    def shown(label: str, *arguments: str) -> str:
        assert cli.main(["show", records[label].run_id, "--results", str(tmp_path), *arguments]) == 0
        return capsys.readouterr().out

    assert "the proof holds in all 6 checks" in " ".join(shown("lora").split())
    text = " ".join(shown("lisa").split())
    assert "the proof fails in 1 of 5 checks" in text
    assert "proof, optimizer state failed: after step 2 it takes" in text
    old = " ".join(shown("owlore").split())
    assert "status ok" in old and "proof, frozen parts failed: changed without being trained: blocks" in old
    value = json.loads(shown("owlore", "--json"))
    failed = [check["name"] for check in value["judgement"]["checks"] if check["verdict"] == "failed"]
    assert "frozen parts" in failed and value["judgement"]["sentence"].startswith("the proof fails in")
    assert Record.model_validate(
        {key: one for key, one in value.items() if key not in ("judgement", "remarks")}
    ) == spoilt(records["owlore"])


@pytest.mark.parametrize(
    ("status", "how"), [("unproven", "--keep-weights --retry unproven"), ("failed", "--keep-weights")]
)
def test_how_a_run_is_run_again_for_its_weights_follows_from_its_status(
    status: str, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = make_record(status=status)
    Store(tmp_path).append(record)
    assert cli.main(["evaluate", record.run_id, "--benchmark", "boolq", "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith(f"were not kept; run it again with {how}\n")


def report_of(records: list[Record], folder: Path, kind: str) -> str:
    suite = make.make_suite(labels=("base", "full", "lora"), seeds=(1, 2))
    (file,) = (f for f in write_report(suite, Contents(tuple(records)), folder, [kind]) if f.name.startswith("report"))
    return file.read_text()


def judged(label: str, given: Proof, **changes: Any) -> Record:
    suite = make.make_suite(labels=("base", "full", "lora"), seeds=(1, 2))
    train = None if changes.get("status", "ok") != "ok" else training()
    record: Record = make.make_record(label, suite=suite, train=train or training(), proof=given, **changes)
    return record


WRONG = {"block_checksums_after": ("A", "B", "C", "D")}


def test_a_report_marks_failing_rows_and_counts_what_was_judged(tmp_path: Path) -> None:
    records = [
        judged("full", proof(), seed=1),
        judged("full", proof(**WRONG), seed=2),
        judged("lora", proof(), seed=1),
        judged("lora", proof(declared=None), seed=2),
    ]
    text = report_of(records, tmp_path, "md")
    words = [" ".join(line.split()) for line in text.splitlines()]
    assert [line for line in words if line.startswith("| full § (1 of 2 seeds; unproven) |")]
    assert [line for line in words if line.startswith("| lora |")]
    assert "§ The proof of a run of these labels fails: full." in text
    assert "| tiny | full | 2 | frozen parts | changed without being trained: block 3 |" in words
    assert (
        "Of 4 runs that trained to the end the proof holds in every check of 2, holds as far as it could be judged of "
        "1, and fails of 1." in text
    )
    found = json.loads(report_of(records, tmp_path, "json"))["proofs"]
    assert (found["num_whole"], found["num_partly_judged"]) == (2, 1)
    (one,) = found["failing"]
    assert (one["label"], one["seed"], one["checks"][0]["name"]) == ("full", 2, "frozen parts")


def test_what_was_recorded_as_ok_enters_no_mean_where_its_proof_fails_now(tmp_path: Path) -> None:
    records = [judged("full", proof(), seed=1), judged("full", proof(**WRONG), seed=2)]
    (full,) = (row for row in json.loads(report_of(records, tmp_path, "json"))["labels"] if row["label"] == "full")
    assert full["average"]["num_seeds"] == 1
    text = "\n".join(" ".join(line.split()) for line in report_of(records, tmp_path, "md").splitlines())
    assert "| tiny | full | 2 | unproven | the proof fails in 1 of" in text
    (points,) = history(records, "step_time").values()
    assert [len(point.values) for point in points] == [1]


def test_an_unproven_run_enters_no_mean_and_stands_with_its_reason(tmp_path: Path) -> None:
    records = [
        judged("full", proof(), seed=1),
        judged("full", proof(**WRONG), seed=2, status="unproven", reason="the proof fails in 1 of 6 checks"),
        judged("lora", proof(**WRONG), seed=1, status="unproven", reason="the proof fails in 1 of 6 checks"),
    ]
    text = "\n".join(" ".join(line.split()) for line in report_of(records, tmp_path, "md").splitlines())
    assert "full § (1 of 2 seeds; unproven)" in text
    assert "| lora | unproven, not run |" in text
    assert "| tiny | full | 2 | unproven | the proof fails in 1 of 6 checks |" in text
    rows = json.loads(report_of(records, tmp_path, "json"))["labels"]
    (full,) = (row for row in rows if row["label"] == "full")
    assert full["average"]["num_seeds"] == 1


def test_the_terminal_marks_a_failing_row_too() -> None:
    suite = make.make_suite(labels=("base", "full", "lora"), seeds=(1, 2))
    page = Console(file=io.StringIO(), width=200)
    terminal_table(suite, Contents((judged("full", proof(**WRONG)), judged("lora", proof()))), page)
    assert isinstance(page.file, io.StringIO)
    lines = page.file.getvalue().splitlines()
    assert [line for line in lines if line.startswith("full §")]
    assert not [line for line in lines if line.startswith("lora §")]


def test_a_report_of_runs_without_any_proof_has_no_section(tmp_path: Path) -> None:
    assert "## Proofs" not in report_of([judged("full", Proof())], tmp_path, "md")


@pytest.mark.parametrize(
    "broken",
    [
        lambda: judged("full", proof(**WRONG), minute=9),
        lambda: judged("full", proof(**WRONG), minute=9, status="unproven", reason="the proof fails: frozen parts"),
    ],
    ids=["as judged now", "as recorded"],
)
def test_a_proof_that_breaks_fails_a_comparison(broken: Callable[[], Record]) -> None:
    old, new = judged("full", proof()), broken()
    comparison = compare_sides(Side("old", (old,)), Side("new", (new,)))
    assert comparison.fails
    (cell,) = (cell for cell in comparison.cells if cell.verdict == "failed")
    assert cell.basis.startswith("seed 1: ok -> unproven (the proof fails")
    assert "frozen parts" in cell.basis
    assert not [cell for cell in comparison.cells if cell.verdict in ("same", "worse", "improved")]
    assert compare_sides(Side("old", (new,)), Side("new", (new,))).counts["not measured again"] == 1
    assert not compare_sides(Side("old", (old,)), Side("new", (judged("full", proof(), minute=9),))).fails
