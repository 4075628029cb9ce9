"""Files of public GitHub repositories at a fixed commit, identified by git's own SHA-1 of their content."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from harness.assets.cache import build_file, cache_root
from harness.catalogue.datasets import DatasetSpec
from harness.errors import HarnessError
from harness.files import said_as
from harness.progress import Progress, silent

HOST = "https://raw.githubusercontent.com"
_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30


def repository_file_place(spec: DatasetSpec) -> Path:
    """Return where the cache keeps the file of a data set that comes from a repository."""
    assert spec.git_blob is not None and spec.path is not None
    return cache_root() / "datasets" / f"{spec.git_blob[:12]}-{Path(spec.path).name}"


def fetch_repository_file(spec: DatasetSpec, *, offline: bool = False, progress: Progress = silent) -> Path:
    """Return the cached file of a data set that comes from a repository, downloaded unless it is there.

    Raises:
        HarnessError: it is missing and cannot be had, or its content is another.
    """

    def build(part: Path) -> None:
        if offline:
            raise HarnessError(missing_data_sentence(spec, "--offline forbids its download"))
        url = f"{HOST}/{spec.repository}/{spec.commit}/{spec.path}"
        try:
            _download(url, part, f"downloading {spec.name}", progress)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", None) or error
            raise HarnessError(missing_data_sentence(spec, f"its download failed ({reason})")) from error
        if (found := git_blob_checksum(part)) != spec.git_blob:
            raise HarnessError(
                f"data set '{spec.name}': what {url} serves is git blob {found}, expected {spec.git_blob}; nothing kept"
            )

    return build_file(repository_file_place(spec), build)


def missing_data_sentence(spec: DatasetSpec, why: str) -> str:
    """Return the sentence for a data set that cannot be had, with what to do."""
    origin = f"{spec.repository}@{(spec.commit or '')[:7]}" if spec.repository else str(spec.hub_id)
    return (
        f"data set '{spec.name}' ({origin}:{spec.path}) is not in the cache {cache_root()} and {why}; run "
        f"'harness prepare' with a network, or give the file with --data {spec.name}=PATH"
    )


def git_blob_checksum(file: Path) -> str:
    """Return git's SHA-1 of a file's content: of ``blob <size>``, a zero byte, and the content.

    Raises:
        HarnessError: the file cannot be read.
    """
    with said_as(f"{file}: cannot be read"):
        digest = hashlib.sha1(f"blob {file.stat().st_size}\0".encode(), usedforsecurity=False)
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _download(url: str, part: Path, description: str, progress: Progress) -> None:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response, part.open("wb") as sink:
        length = response.headers.get("Content-Length")
        total, done = int(length) if length else None, 0
        while chunk := response.read(_CHUNK):
            sink.write(chunk)
            done += len(chunk)
            progress(description, done, total)
