"""Which wheels a bundle holds, asked of the real pip with a folder of tiny packages in place of an index."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from harness.bundling import source as bundle_source
from harness.bundling.source import rebuilt_wheel
from harness.bundling.target import PYTHONS, Target, least_glibc, target_of
from harness.bundling.wheels import Wanted, collect_wheels
from harness.errors import HarnessError
from harness.progress import silent
from tests.bundles import make_source, make_wheel, only_from

RUNNING = f"{sys.version_info[0]}.{sys.version_info[1]}"
OTHER = "3.12" if RUNNING != "3.12" else "3.13"
CP = f"cp{OTHER.replace('.', '')}"
FOREIGN = Target(OTHER, "x86_64", (2, 28))
Collect = Callable[..., dict[str, str]]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    only_from(tmp_path / "index", monkeypatch)
    return tmp_path / "index"


@pytest.fixture
def collect(tmp_path: Path) -> Collect:
    """Return a call that bundles a harness with these requirements and gives version by name."""

    def call(
        *requires: str,
        target: Target = FOREIGN,
        left_out: Mapping[str, str] | None = None,
        extras: tuple[str, ...] = (),
    ) -> dict[str, str]:
        own = make_wheel(tmp_path / "own", "finetune-harness", "0.1.0", requires, extras=("gpu",))
        (tmp_path / "wheels").mkdir(exist_ok=True)
        got = collect_wheels(Wanted(own, extras, target, left_out or {}), tmp_path / "wheels", silent)
        assert got.pop("finetune-harness") == "0.1.0"
        return got

    return call


def test_wheels_and_markers_are_those_of_the_target(index: Path, collect: Collect, tmp_path: Path) -> None:
    make_wheel(index, "compiled", tag=f"{CP}-{CP}-manylinux_2_17_x86_64")
    make_wheel(index, "compiled", tag=f"{CP}-{CP}-manylinux_2_17_aarch64")
    make_wheel(index, "compiled", "2.0", tag=f"{CP}-{CP}-manylinux_2_34_x86_64")
    make_wheel(index, "there", requires=["deep"])
    make_wheel(index, "deep")
    make_wheel(index, "here-alone")
    got = collect("compiled", f"there; python_version == '{OTHER}'", f"here-alone; python_version == '{RUNNING}'")
    assert got == {"compiled": "1.0", "there": "1.0", "deep": "1.0"}
    names = sorted(file.name for file in (tmp_path / "wheels").iterdir())
    assert f"compiled-1.0-{CP}-{CP}-manylinux_2_17_x86_64.whl" in names and len(names) == 4


@pytest.mark.slow
def test_what_is_left_out_takes_with_it_what_only_it_needs(
    index: Path, collect: Collect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(index, "torch", "2.13.0", ["triton", "shared"])
    make_wheel(index, "triton")
    make_wheel(index, "shared")
    make_wheel(index, "shared", "2.0")
    make_wheel(index, "user", requires=["torch>=2.11", "shared"])
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("torch==2.13.0\nshared==1.0\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(constraints))
    assert collect("torch>=2.11", "user", left_out={"torch": "2.11.0"}) == {"shared": "1.0", "user": "1.0"}
    with pytest.raises(HarnessError, match=r"these exclude each other: .*torch"):
        collect("torch>=2.11", "user", left_out={"torch": "2.10.0"})


def test_an_extra_is_bundled_where_it_is_asked_for(index: Path, collect: Collect) -> None:
    make_wheel(index, "monitor")
    assert collect("monitor; extra == 'gpu'") == {}
    assert collect("monitor; extra == 'gpu'", extras=("gpu",)) == {"monitor": "1.0"}


def test_a_package_with_source_alone_is_built(index: Path, collect: Collect, tmp_path: Path) -> None:
    make_source(index, "only-source")
    assert collect("only-source>=0.5") == {"only-source": "1.0"}
    assert (tmp_path / "wheels" / "only_source-1.0-py3-none-any.whl").is_file()


@pytest.mark.slow
def test_a_built_wheel_of_one_platform_is_for_no_other(index: Path, collect: Collect) -> None:
    tag = f"cp{RUNNING.replace('.', '')}-cp{RUNNING.replace('.', '')}-linux_{platform.machine()}"
    make_source(index, "only-source", tag=tag)
    with pytest.raises(HarnessError, match=f"only-source has no wheel for Python {OTHER} on manylinux_2_28_x86_64"):
        collect("only-source")
    assert collect("only-source", target=target_of(None, None)) == {"only-source": "1.0"}


def test_wheels_of_other_versions_do_not_stay(index: Path, collect: Collect, tmp_path: Path) -> None:
    make_wheel(index, "alpha", "1.0")
    collect("alpha")
    make_wheel(index, "alpha", "2.0")
    assert collect("alpha") == {"alpha": "2.0"}
    assert sorted(file.name.split("-")[1] for file in (tmp_path / "wheels").glob("alpha*")) == ["2.0"]


def test_a_package_that_nobody_has_is_named(index: Path, collect: Collect) -> None:
    with pytest.raises(HarnessError, match=r"no wheels can be chosen for Python .*nowhere.* found no version at all"):
        collect("nowhere>=3")


def test_an_index_out_of_reach_is_said(index: Path, collect: Collect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(HarnessError, match="the package index cannot be reached; check the network"):
        collect("alpha")


def test_a_rebuilt_wheel_installs_what_was_installed(tmp_path: Path, index: Path) -> None:
    original = make_wheel(tmp_path, "alpha", "3.1", ["beta"], files={"stand_in.py": "def main(): ...\n"})
    first, second = tmp_path / "first", tmp_path / "second"
    _install(original, first)
    (found,) = importlib.metadata.distributions(path=[str(first)])
    rebuilt = rebuilt_wheel(found, tmp_path / "index")
    assert rebuilt.name == original.name
    with zipfile.ZipFile(original) as before, zipfile.ZipFile(rebuilt) as after:
        names = [name for name in before.namelist() if not name.endswith("RECORD")]
        assert sorted(names) == sorted(name for name in after.namelist() if not name.endswith("RECORD"))
        assert all(before.read(name) == after.read(name) for name in names)
    _install(rebuilt, second)
    assert (second / "stand_in.py").read_text() == "def main(): ...\n"
    assert (second / "bin" / "harness").is_file()


def test_an_installation_that_is_not_whole_is_refused(tmp_path: Path, index: Path) -> None:
    _install(make_wheel(tmp_path, "alpha", files={"stand_in.py": ""}), tmp_path / "site")
    (tmp_path / "site" / "stand_in.py").unlink()
    (found,) = importlib.metadata.distributions(path=[str(tmp_path / "site")])
    with pytest.raises(HarnessError, match=r"stand_in\.py: cannot be read, so alpha is not installed whole"):
        rebuilt_wheel(found, tmp_path)


def test_a_harness_without_checkout_and_without_wheel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "somewhere" / "harness"
    package.mkdir(parents=True)
    monkeypatch.setattr(bundle_source.harness, "__file__", str(package / "__init__.py"))
    with pytest.raises(HarnessError, match="runs from neither a checkout nor an installed wheel"):
        bundle_source.own_wheel(tmp_path, silent)


def test_bundles_are_for_every_python_that_the_harness_runs_on() -> None:
    asked = SpecifierSet(str(importlib.metadata.metadata("finetune-harness")["Requires-Python"]))
    assert tuple(f"3.{minor}" for minor in range(8, 30) if f"3.{minor}" in asked) == PYTHONS


def test_the_oldest_glibc_is_what_the_most_demanding_wheel_asks_for() -> None:
    names = ["a-1-py3-none-any", "b-1-cp312-cp312-manylinux2014_x86_64.manylinux_2_17_x86_64"]
    assert least_glibc([Path(f"{name}.whl") for name in names]) == (2, 17)
    assert least_glibc(
        [Path(f"{names[0]}.whl"), Path("c-1-cp312-abi3-manylinux_2_12_x86_64.manylinux_2_31_x86_64.whl")]
    ) == (
        2,
        12,
    )
    assert least_glibc([Path(f"{names[0]}.whl")]) == (2, 0)


def _install(wheel: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
