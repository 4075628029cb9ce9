"""Answers of a calibration on disk: readings, the newest of each part, damaged lines; and the profile made of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from harness.calibration_log import Log, PartResult, Reading, append_result, log_file, read_log
from harness.calibration_profile import profile_of
from harness.device_profile import DeviceProfile, packaged_profiles, profile_text, read_profile
from harness.errors import HarnessError
from harness.record_environment import Environment
from tests.records import ENVIRONMENT

CUDA = ENVIRONMENT.model_copy(update={"device_type": "cuda", "device_name": "a GPU", "device_memory_bytes": 80 * 2**30})


def reading(value: float = 2.0, **changes: Any) -> Reading:
    return Reading(**{"name": "n", "value": value, "unit": "bytes", **changes})


def result(part: str, *readings: Reading, minute: int = 0, **changes: Any) -> PartResult:
    values: dict[str, Any] = {
        "part": part,
        "group": "constants",
        "sizes": "full",
        "outcome": "ok",
        "readings": readings,
        "seconds": 1.0,
        "started_at": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute),
        "environment_id": CUDA.environment_id,
        "environment": CUDA,
    }
    return PartResult(**{**values, **changes})


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({}, None),
        ({"at_most": 2.0}, True),
        ({"at_most": 1.9}, False),
        ({"at_least": 2.0}, True),
        ({"at_least": 2.1}, False),
        ({"at_least": 1.0, "at_most": 1.5}, False),
    ],
)
def test_a_reading_knows_whether_it_reaches_what_was_asked(bounds: dict[str, float], expected: bool | None) -> None:
    assert reading(**bounds).reached is expected


def test_the_difference_is_the_expected_less_the_measured_of_the_measured() -> None:
    assert reading(4.0, expected=3.0).difference == -0.25
    assert reading(4.0).difference is None
    assert reading(0.0, expected=3.0).difference is None


def test_the_newest_answer_of_each_part_counts_at_its_sizes_and_in_its_environment(tmp_path: Path) -> None:
    answers = [
        result("a", reading(1.0)),
        result("b", reading(2.0)),
        result("a", reading(3.0), minute=1),
        result("a", reading(4.0), minute=2, sizes="smoke"),
        result("a", reading(5.0), minute=3, environment_id="elsewhere"),
    ]
    for answer in answers:
        append_result(tmp_path, answer)
    log = read_log(tmp_path)
    assert log == Log(tuple(answers))
    newest = log.latest("full", CUDA.environment_id)
    assert [(one.part, one.readings[0].value) for one in newest] == [("a", 3.0), ("b", 2.0)]


def test_a_damaged_line_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    append_result(tmp_path, result("a"))
    with log_file(tmp_path).open("ab") as stream:
        stream.write(b'{"part": 1}\n{"cut')
    append_result(tmp_path, result("b"))
    log = read_log(tmp_path)
    assert [one.part for one in log.results] == ["a", "b"]
    assert len(log.warnings) == 1
    assert "line 2: is no part of a calibration" in log.warnings[0]
    assert read_log(tmp_path / "empty") == Log()


def answers() -> list[PartResult]:
    attention = {"kernel": "flash", "head_size": 128, "kept_bytes": 4.0, "backward_bytes": 516.0}
    return [
        result("device", group="checks", facts={"compute_capability": "9.0"}),
        result("copy on the device", reading(3e12, unit="bytes/s"), group="checks"),
        result("matrix products, bf16", reading(7e14, unit="FLOP/s"), group="checks"),
        result("context", reading(5e8), facts={"context_bytes": 500_000_001}),
        result("cuBLAS workspaces", reading(6e7), facts={"forward_bytes": 33_554_432, "backward_bytes": 33_554_432}),
        result("SVD", reading(2.5, unit="matrices"), facts={"svd": 2.5}),
        result("QR", outcome="failed", sentence="why", facts={}),
        result("attention with a mask", facts={**attention, "kernel": "efficient"}),
        result("attention without a mask, grouped keys", facts=attention),
    ]


def test_a_profile_is_made_of_the_answers_and_survives_its_file(tmp_path: Path) -> None:
    profile = profile_of(answers())
    assert profile is not None
    assert profile.blas_workspace_bytes == (33_554_432, 33_554_432)
    assert profile.context_bytes == 500_000_001
    assert (profile.rates.flops("bf16"), profile.rates.flops("fp32")) == (7e14, None)
    assert (profile.solver.svd, profile.solver.qr) == (2.5, None)
    grouped = profile.attention_constants(mask=False, grouped=True, head_size=128)
    assert grouped is not None
    assert (grouped.kernel, grouped.backward_bytes) == ("flash", 516.0)
    assert profile.attention_constants(mask=False, grouped=False, head_size=128) is None
    (tmp_path / "p.toml").write_text(profile_text(profile))
    assert read_profile(tmp_path / "p.toml") == profile


@pytest.mark.parametrize("name", ["GPU \U0001f642", "a\x7f\nb = 1", 'a "quoted" \\ one', "\x1b[2J\x9b\u202e", "#"])
def test_a_profile_survives_whatever_its_device_is_called(name: str, tmp_path: Path) -> None:
    profile = profile_of([one.model_copy(update={"environment": named(name)}) for one in answers()])
    assert profile is not None
    (tmp_path / "p.toml").write_text(profile_text(profile), encoding="utf-8", newline="\n")
    assert read_profile(tmp_path / "p.toml") == profile


def named(name: str) -> Environment:
    return CUDA.model_copy(update={"device_name": name, "driver": name})


@pytest.mark.parametrize(
    ("part", "facts", "readings"),
    [
        ("context", {}, ()),
        ("cuBLAS workspaces", {"forward_bytes": 1}, ()),
        ("cuBLAS workspaces", {"forward_bytes": 1, "backward_bytes": 1.5}, ()),
        ("SVD", {}, ()),
        ("attention with a mask", {"kernel": "math", "kept_bytes": 1.0}, ()),
        ("copy on the device", {}, ()),
        ("copy on the device", {}, (reading(-1.0),)),
    ],
)
def test_an_answer_that_lacks_what_it_is_of_adds_nothing(
    part: str, facts: dict[str, Any], readings: tuple[Reading, ...]
) -> None:
    assert profile_of([result(part, *readings, facts=facts)]) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"facts":{"context_bytes":-5}', "facts"),
        ('"facts":{"compute_capability":9.0}', "facts"),
        ('"facts":{"svd":"inf"}', "facts"),
        ('"facts":{"x":' + "9" * 400 + "}", "a number of more than 64 bits"),
    ],
)
def test_a_line_with_impossible_facts_is_told_and_the_others_are_read(text: str, said: str, tmp_path: Path) -> None:
    append_result(tmp_path, result("a"))
    line = log_file(tmp_path).read_text()
    assert '"facts":{}' in line
    log_file(tmp_path).write_text(line.replace('"facts":{}', text) + line)
    log = read_log(tmp_path)
    assert len(log.results) == 1
    assert len(log.warnings) == 1
    assert said in log.warnings[0]


def test_a_line_without_its_end_is_told_and_asked_again(tmp_path: Path) -> None:
    append_result(tmp_path, result("a"))
    file = log_file(tmp_path)
    file.write_bytes(file.read_bytes() + file.read_bytes()[:-1])
    log = read_log(tmp_path)
    assert len(log.results) == 1
    assert "line 2: is cut off after" in log.warnings[0]


def test_what_failed_enters_no_profile() -> None:
    failed = [
        result("QR", outcome="failed", facts={"qr": 2.0}),
        result("context", outcome="out_of_memory", facts={"context_bytes": 1}),
        result("copy on the device", reading(3e12, unit="bytes/s"), outcome="skipped"),
    ]
    assert profile_of([*failed, result("device", group="checks")]) is None
    assert profile_of([]) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("context_bytes = -1\n", "context_bytes"),
        ("nonsense = 1\n", "has no setting 'nonsense'"),
        ("[[attention]]\nmask = true\n", "attention"),
    ],
)
def test_a_profile_that_is_none_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    profile = profile_of(answers()[:2])
    assert profile is not None
    file = tmp_path / "p.toml"
    head, _, rest = profile_text(profile).partition("\n[")
    file.write_text(f"{head}\n{text}" if text.startswith("[") else f"{text}{head}\n[{rest}")
    with pytest.raises(HarnessError, match=sentence):
        read_profile(file)


def test_packaged_profiles_are_of_different_devices() -> None:
    profiles: tuple[DeviceProfile, ...] = packaged_profiles()
    assert len({profile.device_name.casefold() for profile in profiles}) == len(profiles)
    assert all(profile.sizes == "full" for profile in profiles)
