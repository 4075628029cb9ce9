"""How many modules know where a record keeps things: by mypy's types, so it takes most of a minute."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import architecture as figures  # noqa: E402

pytestmark = pytest.mark.slow
MOST_MODULES = 12
"""A field that more modules ask for is asked for by what they want to know: a property, or one of harness.readings.
Spec, environment and names of a record are asked for by most; half of all fields by two modules or less."""


def test_no_field_of_a_record_is_named_all_over_the_house() -> None:
    pytest.importorskip("mypy")
    named = figures.record_fields(figures.Tree(ROOT))
    assert len(named) > 150 and len(named["Record.spec"]) > 1
    many = {field: sorted(modules) for field, modules in named.items() if len(modules) > MOST_MODULES}
    assert not many
    assert statistics.median(len(modules) for modules in named.values()) <= 2
