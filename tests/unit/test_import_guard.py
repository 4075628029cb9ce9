"""bitsandbytes asks the hub for no code and warns of nothing, whoever imports it, once the harness is imported."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.import_guard import guard_imports

ASKED = """
def get_kernel(*arguments, **named):
    print("the hub was asked for", *arguments)
    raise RuntimeError("no hub")
"""
ASKING = """
import logging
try:
    from kernels import get_kernel
    get_kernel("kernels-community/quantization-bitsandbytes")
except Exception as error:
    logging.getLogger(__name__).warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", error)
"""
MODULE = "bitsandbytes.backends.cpu.ops"


def said_by(code: str, folder: Path, *, stand_in: bool) -> str:
    """Return what a new process says that runs some code, a package ``kernels`` beside it.

    Of bitsandbytes, which takes torch and seconds to import, the module alone that asks may stand in.
    """
    (folder / "kernels.py").write_text(ASKED)
    if stand_in:
        module = folder.joinpath(*MODULE.split(".")).with_suffix(".py")
        module.parent.mkdir(parents=True)
        for package in (module.parent, *module.parent.parents[:2]):
            (package / "__init__.py").touch()
        module.write_text(ASKING)
    path = os.pathsep.join([str(folder), str(Path(harness.__file__).parents[1])])
    run = [sys.executable, "-c", code]
    done = subprocess.run(
        run, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout + done.stderr


REAL = pytest.param(False, marks=pytest.mark.slow)


@pytest.mark.parametrize("stand_in", [True, REAL])
def test_nothing_is_asked_and_nothing_said(stand_in: bool, tmp_path: Path) -> None:
    code = f"import harness, {MODULE}, kernels; kernels.get_kernel"  # which is there for others
    assert said_by(code, tmp_path, stand_in=stand_in) == ""


@pytest.mark.parametrize("stand_in", [True, REAL])
def test_without_the_guard_it_is_asked(stand_in: bool, tmp_path: Path) -> None:
    if not stand_in and not pytest.importorskip("bitsandbytes").functional.has_avx512bf16():
        pytest.skip("on this CPU bitsandbytes asks for nothing")
    said = said_by(f"import {MODULE}", tmp_path, stand_in=stand_in)
    assert "the hub was asked for kernels-community/quantization-bitsandbytes" in said
    assert "Failed to load CPU gemm_4bit_forward" in said


def test_other_warnings_of_the_module_are_said(caplog: pytest.LogCaptureFixture) -> None:
    guard_imports()
    logger = logging.getLogger(MODULE)
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "no")
    logger.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
