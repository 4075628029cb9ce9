"""For whom a bundle is: a Python and a machine, in the words of pip, of wheels and of environment markers.

``pip --python-version`` chooses wheels of another Python but reads the markers of dependencies as the running one, so
markers are read anew here.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import default_environment
from packaging.tags import Tag, compatible_tags, cpython_tags, sys_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from harness.errors import HarnessError

PYTHONS = ("3.11", "3.12", "3.13")
GLIBC = (2, 28)
"""Of a target that names none: what the wheels of torch and pyarrow ask for."""
_OLDEST_GLIBC = 5
_PLATFORM = re.compile(r"manylinux_2_(\d+)_(x86_64|aarch64)")
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
"""Source: pypa/packaging 26.3, src/packaging/_manylinux.py, ``_LEGACY_MANYLINUX_MAP``."""


@dataclass(frozen=True)
class Target:
    """A Python on a machine."""

    python: str
    """Major and minor version."""
    machine: str
    glibc: tuple[int, int] | None
    """None: this very machine, with all that its own Python takes."""

    @property
    def is_here(self) -> bool:
        """Return whether it is the running Python on this machine."""
        return self.glibc is None

    def __str__(self) -> str:
        where = f"{sys.platform}, {self.machine}" if self.glibc is None else self.platforms()[0]
        return f"Python {self.python} on {where}"

    def platforms(self) -> list[str]:
        """Return the platform tags that it takes, the newest first; none for this machine."""
        if self.glibc is None:
            return []
        tags = []
        for minor in range(self.glibc[1], _OLDEST_GLIBC - 1, -1):
            tags.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in _LEGACY:
                tags.append(f"{_LEGACY[minor]}_{self.machine}")
        return tags

    def pip_options(self) -> list[str]:
        """Return the options by which pip chooses wheels for it."""
        if self.is_here:
            return []
        options = ["--python-version", self.python, "--implementation", "cp"]
        for name in self.platforms():
            options += ["--platform", name]
        return options

    def markers(self) -> Mapping[str, str]:
        """Return the environment in which markers of dependencies are read."""
        here = {key: str(value) for key, value in default_environment().items()}
        if self.is_here:
            return here
        return here | {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }

    def tags(self) -> frozenset[Tag]:
        """Return the tags of the wheels that it takes."""
        if self.is_here:
            return frozenset(sys_tags())
        version = tuple(map(int, self.python.split(".")))
        digits = self.python.replace(".", "")
        own = cpython_tags(version, [f"cp{digits}"], self.platforms())
        return frozenset([*own, *compatible_tags(version, f"cp{digits}", self.platforms())])


def target_of(python: str | None, platform_tag: str | None) -> Target:
    """Return the target that the options name; without any, the running Python on this machine.

    Raises:
        HarnessError: the harness does not run on that Python, or the platform is none that bundles are made for.
    """
    running = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if python is not None and python not in PYTHONS:
        raise HarnessError(f"--python {python}: the harness runs on {', '.join(PYTHONS)}; name one of these")
    if platform_tag is None and python in (None, running):
        return Target(running, platform.machine(), None)
    if platform_tag is None:
        if sys.platform != "linux":
            raise HarnessError(f"--python {python}: is not the running Python; name the machine with --platform")
        platform_tag = f"manylinux_2_{GLIBC[1]}_{platform.machine()}"
    found = _PLATFORM.fullmatch(platform_tag)
    if found is None or int(found[1]) < _OLDEST_GLIBC:
        raise HarnessError(
            f"--platform {platform_tag}: expected manylinux_2_N_x86_64 or manylinux_2_N_aarch64, where 2.N is the "
            "machine's glibc (ldd --version says it), such as manylinux_2_28_x86_64"
        )
    return Target(python or running, found[2], (2, int(found[1])))


def wheel_tags(wheel: Path) -> frozenset[Tag]:
    """Return the tags in a wheel's name.

    Raises:
        HarnessError: it is no name of a wheel.
    """
    try:
        return parse_wheel_filename(wheel.name)[3]
    except InvalidWheelFilename as error:
        raise HarnessError(f"{wheel.name}: is no name of a wheel") from error


def is_pure(wheel: Path) -> bool:
    """Return whether a wheel runs on every platform and every Python 3."""
    return Tag("py3", "none", "any") in wheel_tags(wheel)


def least_glibc(wheels: list[Path]) -> tuple[int, int]:
    """Return the oldest glibc, (2, n), on which all these wheels run, by their tags; (2, 0) where none asks for any."""
    least = (2, 0)
    for wheel in wheels:
        asked = []
        for tag in wheel_tags(wheel):
            legacy = next((minor for minor, name in _LEGACY.items() if tag.platform.startswith(f"{name}_")), None)
            found = re.match(r"manylinux_2_(\d+)_", tag.platform)
            if found or legacy is not None:
                asked.append((2, int(found[1]) if found else legacy or 0))
        if asked:
            least = max(least, min(asked))
    return least
