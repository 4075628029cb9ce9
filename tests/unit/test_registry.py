"""The registry: duplicates and foreign classes are refused, a typo is answered with a near miss."""

from __future__ import annotations

import pytest

from harness.errors import HarnessError
from harness.method import METHODS, Method
from harness.registry import Registry


@pytest.fixture
def registry() -> Registry[Method]:
    return Registry("method", Method, package="harness.suites", entry_points="finetune_harness.none")  # type: ignore[type-abstract]


def test_unknown_name_is_answered_with_a_near_miss() -> None:
    with pytest.raises(HarnessError, match="there is no method 'galor'; did you mean 'galore'"):
        METHODS.get("galor")


def test_every_module_of_the_methods_folder_is_registered_under_its_name() -> None:
    assert {"base", "full", "galore", "lisa", "lora", "owlore"} <= set(METHODS.names())


def test_a_second_class_under_a_taken_name_is_refused(registry: Registry[Method]) -> None:
    class First(Method):
        pass

    class Second(Method):
        pass

    registry.register("same")(First)
    with pytest.raises(HarnessError, match="registered twice"):
        registry.register("same")(Second)


def test_a_class_of_another_kind_is_refused(registry: Registry[Method]) -> None:
    with pytest.raises(HarnessError, match="not a subclass of Method"):
        registry.register("wrong")(int)  # type: ignore[arg-type]
