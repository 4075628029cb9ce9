"""The contract takes a method by what it declares: a new one is its file, in the tree with its label, and no test's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.method import Method
from harness.methods._layer_sampled import LayerSampledMethod
from harness.methods.full import Full
from harness.methods.lora import Lora
from tests.toy_grass import ToyGrassConfig

TESTS = Path(__file__).parents[1]
REPOSITORY = TESTS.parent
TOY = (TESTS / "toy_grass.py").read_text(encoding="utf-8")
LIKE = "lisa-d"
"""A label that no test of the contract names."""
OF_LABELS = {"test_every_setting_is_explicit_and_has_a_source", "test_what_we_chose_says_why"}
"""Tests of methods.toml."""


@pytest.fixture
def plug_in(tmp_path: Path) -> Path:
    """A folder with a distribution whose entry point is the toy."""
    site = tmp_path / "site"
    (site / "toy-1.0.dist-info").mkdir(parents=True)
    (site / "toy_plug_in.py").write_text(TOY)
    (site / "toy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (site / "toy-1.0.dist-info" / "entry_points.txt").write_text(
        "[finetune_harness.methods]\ntoy-grass = toy_plug_in:ToyGrass\n"
    )
    return site


@pytest.fixture
def in_the_tree(tmp_path: Path) -> Path:
    """A copy of the package to which the toy was added: one file, one label."""
    site, ignored = tmp_path / "site", shutil.ignore_patterns("__pycache__")
    for inside, source in (("harness", "harness"), ("harness/methods", "methods"), ("harness/suites", "suites")):
        shutil.copytree(REPOSITORY / source, site / inside, ignore=ignored)
    registered = TOY.replace("class ToyGrass(", '@METHODS.register("toy-grass")\nclass ToyGrass(').replace(
        "from harness.method import GradientNorms", "from harness.method import METHODS, GradientNorms"
    )
    assert registered.count("METHODS") == 2
    (site / "harness" / "methods" / "toy_grass.py").write_text(registered)
    lines = ['\n[toy-grass]\nmethod = "toy-grass"\nsummary = "a toy"\n[toy-grass.settings]']
    for name, value in ToyGrassConfig().model_dump(mode="json").items():
        if value is not None:
            lines.append(f'{name} = {{ value = {json.dumps(value)}, source = "ours", note = "a toy" }}')
    with (site / "harness" / "suites" / "methods.toml").open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return site


def contract(site: Path, *arguments: str) -> str:
    """Return what pytest says of the contract tests with a folder in front of the installed package."""
    command = [sys.executable, "-P", "-m", "pytest", "--import-mode=importlib", "-q", "-p", "no:cacheprovider"]
    keep = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, *arguments, "tests/contract"],
        cwd=REPOSITORY,
        env={**keep, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def functions(listed: str, label: str) -> set[str]:
    """Return the names of the tests that are collected for a label."""
    found = [line.split("::")[-1].partition("[") for line in listed.splitlines() if "::" in line and "[" in line]
    return {name for name, _, parameters in found if label in parameters}


@pytest.mark.slow
def test_a_plug_in_is_under_every_contract_test_that_its_declarations_call_for(plug_in: Path) -> None:
    listed = contract(plug_in, "--collect-only")
    expected = functions(listed, LIKE)
    assert len(expected) > 25
    assert functions(listed, "toy-grass") == expected - OF_LABELS
    ran = contract(plug_in, "-k", "toy-grass and not enrolment")
    assert " passed" in ran
    assert "failed" not in ran


@pytest.mark.slow
def test_a_method_in_the_tree_is_its_file_and_its_label(in_the_tree: Path) -> None:
    listed = contract(in_the_tree, "--collect-only")
    assert functions(listed, "toy-grass") == functions(listed, LIKE)
    ran = contract(in_the_tree, "-k", "toy-grass and not enrolment or test_configurations or test_every_method_of_ours")
    assert " passed" in ran
    assert "failed" not in ran


def test_what_a_method_declares_and_what_it_overrides_must_agree() -> None:
    with pytest.raises(
        TypeError, match="method Blind has observes_gradients = True and does not override on_gradients"
    ):
        type("Blind", (Full,), {"observes_gradients": True})
    with pytest.raises(TypeError, match="method Shy has observes_gradients = False and overrides on_gradients"):
        type("Shy", (Full,), {"on_gradients": lambda self, step, norms: None})
    with pytest.raises(TypeError, match="method Idle has probes = True and does not override probe_needed"):
        type("Idle", (Full,), {"probes": True})
    with pytest.raises(TypeError, match="method Half has probes = True and does not override on_probe"):
        type("Half", (Full,), {"probes": True, "probe_needed": lambda self: None})
    with pytest.raises(TypeError, match="method Fixed has samples_blocks = False and overrides visit"):
        type("Fixed", (LayerSampledMethod,), {"samples_blocks": False})
    with pytest.raises(TypeError, match="method Bare has has_adapter = False and overrides adapter"):
        type("Bare", (Lora,), {"has_adapter": False})
    with pytest.raises(TypeError, match="method Odd has draws_depend_on_training = True, but samples_blocks = False"):
        type("Odd", (Full,), {"draws_depend_on_training": True})


def test_a_method_that_undoes_what_it_inherits_says_so() -> None:
    """A subclass that gives a hook back to the base class declares that, too."""
    plain = type("Plain", (LayerSampledMethod,), {"samples_blocks": False, "visit": Method.visit})
    assert not plain.samples_blocks
