"""Opening pages in a real headless Chromium, spoken to over a pair of pipes (the DevTools protocol, no extra library).

    with open_browser(tmp_path) as browser:
        page = browser.open(file)                       # or an http URL on loopback
        assert page.evaluate("document.title") == "..."
        page.screenshot(tmp_path / "page.png")
        assert page.problems == [] and page.requests == [page.url]

Nothing is installed by a test: without Chromium it is skipped, and the reason says how to get one (`make browser`).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Quiet: no sandbox (tests may run as root), and none of the background requests that a desktop browser makes.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--hide-scrollbars", "--force-device-scale-factor=1", "--remote-debugging-pipe"),
)
PATIENCE_S = 60.0


def find_browser() -> str | None:
    """Path of an installed Chromium, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_browser(folder: Path, width: int = 1200, height: int = 900) -> Iterator[Browser]:
    """A browser with an empty profile in `folder`; skips the test where no Chromium is installed."""
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium here: `make browser` installs one (or apt-get install chromium)")
    ours_read, theirs_write = os.pipe()
    theirs_read, ours_write = os.pipe()
    # Chromium reads commands from descriptor 3 and writes answers to descriptor 4.
    shell = f'exec "$0" "$@" 3<&{theirs_read} 4>&{theirs_write}'
    arguments = [program, *FLAGS, f"--window-size={width},{height}", f"--user-data-dir={folder / 'profile'}"]
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", shell, *arguments], pass_fds=(theirs_read, theirs_write), stdout=log, stderr=log
        )
    os.close(theirs_read)
    os.close(theirs_write)
    browser = Browser(ours_read, ours_write)
    try:
        yield browser
    finally:
        os.close(ours_write)  # the browser ends when its commands do
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(ours_read)


class Browser:
    """Commands out, answers and events in; messages are JSON ended by a zero byte."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._rest, self._last = read, write, b"", 0
        self.pages: dict[str, Page] = {}

    def open(self, target: str | Path) -> Page:
        """Load a file or URL and wait until it, its pictures and its scripts are there."""
        url = target.resolve().as_uri() if isinstance(target, Path) else target
        made = self.call("Target.createTarget", {"url": "about:blank"})
        session = self.call("Target.attachToTarget", {"targetId": made["targetId"], "flatten": True})["sessionId"]
        page = self.pages[session] = Page(self, session, url)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        error = page.call("Page.navigate", {"url": url}).get("errorText")
        assert not error, f"{url}: {error}"
        self.wait(lambda: page.loaded, f"the load of {url}")
        return page

    def call(self, method: str, parameters: dict[str, Any] | None = None, session: str | None = None) -> dict[str, Any]:
        """One command and its answer."""
        self._last += 1
        answers = list[dict[str, Any]]()  # commands are sent one at a time, so the next answer is this one's
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters or {}}
        os.write(self._write, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        self.wait(lambda: bool(answers), method, answers.append)
        assert "error" not in answers[0], f"{method}: {answers[0]['error']}"
        result: dict[str, Any] = answers[0]["result"]
        return result

    def wait(self, done: Any, what: str, answer: Any = lambda found: None) -> None:
        """Take in messages until it is `done`; answers to commands go to `answer`."""
        end = time.monotonic() + PATIENCE_S
        while not done():
            message = self._next(end, what)
            if "id" in message:
                answer(message)
            elif message.get("sessionId") in self.pages:
                self.pages[message["sessionId"]].note(message["method"], message["params"])

    def _next(self, end: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"Chromium said nothing about {what} within {PATIENCE_S:.0f} s"
            data = os.read(self._read, 1 << 16)
            assert data, f"Chromium ended while {what} was waited for"
            self._rest += data
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


class Page:
    """A tab.

    Attributes:
        url: where it was sent. requests: every URL it asked for. problems: uncaught errors, what the console calls an
            error, and requests that failed.
    """

    def __init__(self, browser: Browser, session: str, url: str) -> None:
        self.browser, self.session, self.url, self.loaded = browser, session, url, False
        self.requests: list[str] = []
        self.problems: list[str] = []

    def call(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        """One command to this tab."""
        return self.browser.call(method, parameters, self.session)

    def note(self, method: str, event: dict[str, Any]) -> None:
        """Take in one event."""
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Network.requestWillBeSent" and not event["request"]["url"].startswith("data:"):
            self.requests.append(event["request"]["url"])
        elif method == "Network.loadingFailed":
            self.problems.append(f"a request failed: {event['errorText']}")
        elif method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and event["type"] == "error":
            self.problems.append(" ".join(str(word.get("value")) for word in event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] == "error":
            self.problems.append(event["entry"]["text"])

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page (a promise is waited for)."""
        wanted = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", wanted)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def load_by(self, script: str) -> None:
        """Run what leaves or reloads the page, and wait for the next one: in between nothing can be asked."""
        self.loaded = False
        self.evaluate(f"void setTimeout(() => {{ {script} }})")
        self.browser.wait(lambda: self.loaded, f"the load by {script}")

    def broken_pictures(self) -> list[str]:
        """Alternative text of pictures that did not decode; an SVG in the page needs no decoding."""
        found: list[str] = self.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.alt)")
        return found

    def screenshot(self, file: Path) -> Path:
        """The whole page, also below the window, as a PNG."""
        data = self.call("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True})["data"]
        file.write_bytes(base64.b64decode(data))
        return file
