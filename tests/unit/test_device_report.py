"""Which devices a build of torch holds code for."""

from __future__ import annotations

import pytest

from harness.engine.device_report import has_code_for

BUILD = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "compute_120")


@pytest.mark.parametrize(
    ("capability", "held"),
    [
        ((7, 0), False),
        ((7, 5), True),
        ((8, 0), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 3), True),
        ((11, 0), False),
        ((12, 0), True),
    ],
)
def test_code_runs_on_its_own_major_version_from_its_minor_one_on(capability: tuple[int, int], held: bool) -> None:
    assert has_code_for(capability, BUILD) is held


def test_a_build_that_does_not_say_what_it_holds_is_not_doubted() -> None:
    assert has_code_for((7, 0), ())
