"""pip as a program: what it was asked, what it said, and one sentence of why it failed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import HarnessError
from harness.progress import Progress, silent

_POLL_SECONDS = 0.2
_SCATTERING = ("PIP_REQUIRE_VIRTUALENV", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_NO_DEPS", "PIP_DRY_RUN")
"""Variables that send an installation elsewhere, or cut it short."""
_UNREACHABLE = re.compile(
    r"NewConnectionError|NameResolutionError|Connection refused|ConnectTimeoutError|Max retries exceeded|ProxyError|"
    r"Temporary failure in name resolution|Network is unreachable"
)
_CONFLICT = re.compile(r"The conflict is caused by:\n((?:[ \t]+\S.*\n)+)")


@dataclass(frozen=True)
class Answer:
    """How a call of pip ended."""

    code: int
    output: str

    def check(self, what: str) -> None:
        """Refuse a call that failed.

        Raises:
            HarnessError: it did; ``what`` begins the sentence.
        """
        if self.code != 0:
            raise HarnessError(f"{what}: {self.reason()}")

    def reason(self) -> str:
        """Return why it failed, with what to do where that is known."""
        if _UNREACHABLE.search(self.output):
            return "the package index cannot be reached; check the network and pip's index-url and proxy"
        if (conflict := _CONFLICT.search(self.output)) is not None:
            causes = ", ".join(line.strip() for line in conflict[1].splitlines())
            return f"these exclude each other: {causes}; mend the constraints or what is left out"
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
        if "(from versions: none)" in self.output and errors:
            return (
                f"pip says: {errors[-1].rstrip('.')}, of which it found no version at all; is its name right, and is "
                "the package index reached?"
            )
        useful = [line for line in errors if not line.startswith("ResolutionImpossible")]
        return f"pip says: {(useful or errors or lines or [f'exit code {self.code}'])[-1].rstrip('.')}"


def check_pip() -> None:
    """Refuse a Python without pip.

    Raises:
        HarnessError: there is none.
    """
    if importlib.util.find_spec("pip") is None:
        raise HarnessError(f"{sys.executable} has no pip, which fetches wheels; install it: python -m ensurepip")


def run_pip(
    arguments: Sequence[str],
    what: str,
    *,
    progress: Progress = silent,
    num_bytes: Callable[[], int] = lambda: 0,
    variables: Mapping[str, str] | None = None,
) -> Answer:
    """Run pip to its end and return what came of it.

    Args:
        arguments: Of pip.
        what: Shown while it works.
        progress: Called while it works.
        num_bytes: How much there is already.
        variables: Of the environment, beside the user's.
    """
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input", "--no-color"]
    environment = {**os.environ, **(variables or {})}
    for name in _SCATTERING:
        environment.pop(name, None)
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                progress(what, num_bytes(), None)
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        said.seek(0)
        return Answer(process.returncode, said.read().decode(errors="replace"))
