"""A plug-in that cannot be had is one sentence where it is needed, and in nobody's way else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.expansion import expand, load_suite
from harness.method import METHODS
from tests.plug_ins import METHOD, install, look_again
from tests.unit.test_suite import MODELS, TEXT

RAISED = {
    "raise SystemExit(3)": "SystemExit: 3",
    "import sys; sys.exit()": "SystemExit",
    "def (": "SyntaxError: ",
    "import not_there_at_all": "ModuleNotFoundError: No module named 'not_there_at_all'",
    "raise ImportError": "ImportError",
    "raise BaseException('panic')": "BaseException: panic",
    "1 / 0": "ZeroDivisionError: division by zero",
    "from harness.errors import HarnessError\nraise HarnessError('not on this machine')": "not on this machine",
    "PlugIn = 3": "method 'odd' is 3, which is not a subclass of Method",
    "x = 1": "AttributeError: module 'oddmodule' has no attribute 'PlugIn'",
}
"""What stands in the module -> what is said of it."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    METHODS.names()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


def odd(site: Path, text: str, *, name: str = "odd", entry: str = "odd = oddmodule:PlugIn") -> None:
    install(site, f"{name}dist", "1.0", "oddmodule.py", text, entry=entry)


@pytest.mark.parametrize("text", RAISED)
def test_whatever_a_plug_in_raises_is_a_sentence_where_it_is_needed(
    site: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    odd(site, text)
    look_again(monkeypatch, "oddmodule")
    assert {"full", "lora"} <= set(METHODS.names())
    assert "odd" not in METHODS.names()
    with pytest.raises(HarnessError) as caught:
        METHODS.get("odd")
    said = str(caught.value)
    assert said.startswith("the method plug-in 'odd' (oddmodule:PlugIn of odddist) cannot be imported: ")
    assert RAISED[text] in said and "\n" not in said
    assert list(METHODS.broken()) == ["odd"]


def test_an_interrupt_while_a_plug_in_is_imported_stays_one(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd(site, "raise KeyboardInterrupt")
    look_again(monkeypatch, "oddmodule")
    with pytest.raises(KeyboardInterrupt):
        METHODS.names()


def test_a_module_that_is_missing_is_said(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd(site, "", entry="odd = gone.away:PlugIn")
    look_again(monkeypatch, "oddmodule")
    with pytest.raises(HarnessError, match=r"\(gone.away:PlugIn of odddist\) cannot be imported: ModuleNotFoundError"):
        METHODS.get("odd")


def test_a_suite_that_needs_it_is_refused_and_another_is_not(
    site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    odd(site, "raise SystemExit")
    look_again(monkeypatch, "oddmodule")
    file = tmp_path / "tiny.toml"
    file.write_text(TEXT)
    assert expand(load_suite(str(file)), models=MODELS, sources={})
    file.write_text(TEXT.replace('"full"', '"odd"'))
    with pytest.raises(HarnessError, match=r"label 'odd': the method plug-in 'odd' .* cannot be imported"):
        load_suite(str(file))


def test_two_plug_ins_of_one_name_are_refused_by_that_name(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        install(site, name, "1.0", f"{name}module.py", METHOD, entry=f"odd = {name}module:PlugIn")
    look_again(monkeypatch, "firstmodule", "secondmodule")
    assert "full" in METHODS.names()
    with pytest.raises(HarnessError) as caught:
        METHODS.get("odd")
    assert all(part in str(caught.value) for part in ("method 'odd' is declared twice", "of first", "of second"))


def test_a_plug_in_never_stands_in_for_a_method_of_ours(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd(site, METHOD, entry="full = oddmodule:PlugIn")
    look_again(monkeypatch, "oddmodule")
    with pytest.raises(HarnessError, match="'full' is declared twice, by the harness itself and by oddmodule:PlugIn"):
        METHODS.get("full")
    assert METHODS.get("lora").summary


def test_commands_work_beside_a_plug_in_that_ends_the_interpreter(site: Path) -> None:
    odd(site, "raise SystemExit('bye')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "harness.cli", "list", "methods", "--json"],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert any(row["label"] == "full" for row in json.loads(done.stdout))
    assert "plug-in 'odd' (oddmodule:PlugIn of odddist) cannot be imported: SystemExit: bye" in done.stderr
