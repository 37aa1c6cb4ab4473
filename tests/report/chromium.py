"""A real headless Chromium for tests, driven over the DevTools protocol through two pipes; nothing but the standard
library."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60.0


class Page:
    """One page of the browser. Clicks and keys are real input events, at the place where the element is drawn."""

    def __init__(self, write_to: int, read_from: int, downloads: Path) -> None:
        self._write_to, self._read_from = write_to, read_from
        self._buffer = b""
        self._last = 0
        self._session = ""
        self.downloads = downloads
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads), eventsEnabled=True)
        self._session = session
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.size(1400, 1000)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events that come meanwhile are kept in `events`."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write_to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read_from], [], [], max(0, until - time.monotonic()))
            piece = os.read(self._read_from, 1 << 20) if ready else b""
            if not piece:
                raise TimeoutError("the browser does not answer")
            self._buffer += piece
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def dark(self, on: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, path: Path) -> float:
        """Load a file; returns the seconds until it was loaded and drawn."""
        begun = time.monotonic()
        del self.events[:]
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())
        self.js("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))")
        return time.monotonic() - begun

    def js(self, expression: str) -> Any:
        """The value of an expression (awaited) in the page; an exception there is one here."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        return self.js(f"document.querySelector({json.dumps(selector)}).innerText")

    def texts(self, selector: str) -> list[str]:
        return self.js(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.innerText)")

    def click(self, selector: str) -> None:
        """Click into the middle of the first element of that selector; it must be there, in sight and on top."""
        x, y, hit = self.js(
            f"""(() => {{
                const element = document.querySelector({json.dumps(selector)});
                element.scrollIntoView({{block: "nearest"}});
                const box = element.getBoundingClientRect();
                const x = box.x + box.width / 2, y = box.y + box.height / 2;
                const top = document.elementFromPoint(x, y);
                return [x, y, element.contains(top)];
            }})()"""
        )
        assert hit, f"{selector} is covered or out of sight"
        self.click_at(x, y)

    def click_at(self, x: float, y: float, to: tuple[float, float] | None = None) -> None:
        """Press the mouse at a place and let it go there, or at `to`."""
        end = to or (x, y)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", clickCount=1)
        if to:
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=end[0], y=end[1], button="left")
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], button="left", clickCount=1)

    def key(self, name: str) -> None:
        text = {"text": name} if len(name) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name)

    def type(self, selector: str, text: str) -> None:
        """Replace what stands in an input by typing."""
        self.js(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.focus(); e.select(); }})()")
        if text:
            self.call("Input.insertText", text=text)
        else:
            self.call("Input.dispatchKeyEvent", type="keyDown", key="Delete", windowsVirtualKeyCode=46)
            self.call("Input.dispatchKeyEvent", type="keyUp", key="Delete", windowsVirtualKeyCode=46)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select by its value."""
        self.js(
            f"""(() => {{
                const e = document.querySelector({json.dumps(selector)});
                if (![...e.options].some((o) => o.value === {json.dumps(value)})) throw Error("no such option");
                e.value = {json.dumps(value)};
                e.dispatchEvent(new Event("change", {{bubbles: true}}));
            }})()"""
        )

    def downloaded(self, name: str) -> Path:
        """The downloaded file, when it is whole."""
        until = time.monotonic() + PATIENCE
        path = self.downloads / name
        while not any(
            event.get("method") == "Browser.downloadProgress" and event["params"]["state"] == "completed"
            for event in self.events
        ):
            assert time.monotonic() < until, f"{name} was not downloaded"
            self.js("1")
            time.sleep(0.02)
        self.events[:] = [event for event in self.events if event.get("method") != "Browser.downloadProgress"]
        return path

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def faults(self) -> list[str]:
        """Exceptions, console errors and refused requests since the page was opened."""
        self.js("1")
        found = []
        for event in self.events:
            method, parameters = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(str(parameters["exceptionDetails"]))
            if method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                found.append(parameters["entry"]["text"])
        return found

    def requests(self) -> list[str]:
        """Addresses asked for since the page was opened, without data in the page itself."""
        self.js("1")
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("data:", "blob:"))]


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A fresh browser with its profile and downloads in `folder`; skips the test where there is no Chromium."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"needs a Chromium ({', '.join(NAMES)}) on the PATH to try the page in")
    downloads = folder / "downloads"
    downloads.mkdir(parents=True)
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for pipe in (os.pipe(), os.pipe()) for end in pipe]
    to_browser_read, to_browser_write, from_browser_read, from_browser_write = ends
    options = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"),
    ]
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$@" 3</dev/fd/{to_browser_read} 4>/dev/fd/{from_browser_write}', "sh", program, *options],
        pass_fds=(to_browser_read, from_browser_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser_read)
    os.close(from_browser_write)
    try:
        page = Page(to_browser_write, from_browser_read, downloads)
        yield page
        with contextlib.suppress(OSError, TimeoutError):
            page._session = ""
            page.call("Browser.close")
    finally:
        os.close(to_browser_write)
        os.close(from_browser_read)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
