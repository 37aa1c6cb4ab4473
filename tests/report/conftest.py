"""A headless Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from reid.mtmc.matching import Matches
from tests.report.small_matches import small_matches

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture
def matches() -> Matches:
    """Return a small result of matching."""
    return small_matches()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Start a browser; tests are skipped where Playwright or Chromium is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Install playwright to test pages in a browser.")
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"Install Chromium ({', '.join(NAMES)}) to test pages in a browser.")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser) -> Iterator[object]:
    """Open an empty page with its own storage; fails if it reports an error or loads anything but files."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: problems.append(message.text) if message.type != "log" else None)
    opened.on("requestfailed", lambda request: problems.append(f"refused: {request.url[:200]}"))
    allowed = ("file:", "data:", "blob:")
    opened.on("request", lambda r: None if r.url.startswith(allowed) else problems.append(f"requested: {r.url}"))
    yield opened
    context.close()
    assert not problems
