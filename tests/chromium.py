"""A headless Chromium for tests, driven through its DevTools pipe: no driver, no port, no profile that stays."""

from __future__ import annotations

import base64
import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
TIMEOUT_SECONDS = 60.0
PLACE_PIPES = 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null'
"""Chromium takes its pipes as files 3 and 4."""
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # the tests may run as root; the pages are ours
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-pipe",
    "about:blank",
)


class Page:
    """One page of a running Chromium, and what it did so far."""

    def __init__(self, reads: int, writes: int) -> None:
        self._reads, self._writes = reads, writes
        self._buffer = b""
        self._count = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        """Console messages, exceptions, breaches of the page's policy and dialogs."""
        self.requests: list[str] = []
        """Addresses that were asked for, those in the page itself left out."""

    def attach(self) -> None:
        (target,) = [t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        found = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, file: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a file and wait until it and its pictures are there."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self._call("Page.navigate", url=file.as_uri())
        self.run("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        """Press a key down and let it go."""
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, text=text, windowsVirtualKeyCode=13)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=13)

    def screenshot(self, file: Path, *, whole: bool = True) -> None:
        data = self._call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        file.write_bytes(base64.b64decode(data))

    def pdf(self, file: Path) -> int:
        """Print the page as its style says, and return of how many sheets."""
        data = base64.b64decode(self._call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)["data"])
        file.write_bytes(data)
        return len(re.findall(rb"/Type\s*/Page\b(?!s)", data))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self._note(answer["method"], answer["params"])

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + TIMEOUT_SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reads], [], [], max(0.0, end - time.monotonic()))
            assert ready, "Chromium does not answer"
            data = os.read(self._reads, 1 << 16)
            assert data, "Chromium ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(line))

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method in {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Page.javascriptDialogOpening"}:
            self.complaints.append(f"{method}: {json.dumps(params)[:500]}")
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = str(params["request"]["url"])
            if not url.startswith("data:"):
                self.requests.append(url)


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """Run Chromium with its profile in ``folder`` and yield its page."""
    assert CHROMIUM is not None
    to_read, to_write = os.pipe(), os.pipe()  # what it reads, what it writes
    process = subprocess.Popen(
        ["/bin/sh", "-c", PLACE_PIPES, "sh", CHROMIUM, f"--user-data-dir={folder / 'profile'}", *ARGUMENTS],
        stdin=to_read[0],
        stdout=to_write[1],
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read[0])
    os.close(to_write[1])
    try:
        page = Page(to_write[0], to_read[1])
        page.attach()
        yield page
    finally:
        os.close(to_read[1])
        os.close(to_write[0])
        process.terminate()
        process.wait(TIMEOUT_SECONDS)
