"""Pages whose texts are hostile, in a browser: nothing runs, and nothing is requested."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import reid
from reid.report.adaptation_page import write_adaptation
from reid.report.answer_page import write_answer_page
from reid.report.match_page import ReportOptions, write_match_report
from tests.report.small_matches import small_matches
from tests.report.test_answer_page import small_answer
from tests.report.test_page import FEW, random_results, written

pytestmark = pytest.mark.slow

PAYLOADS = (
    "<script>window.ran = true</script>",
    "\"><img src=x onerror='window.ran = true'>",
    "</style></title></script><svg onload='window.ran = true'>",
    "'-(window.ran = true)-'",
    "javascript:window.ran=true",
    "{{ 7 * 7 }}{% raw %}",
)


@pytest.fixture
def requests() -> Iterator[tuple[str, list[str]]]:
    """Return the address of a server on this machine, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True  # a browser keeps connections open
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()


def evaluation(folder: Path, text: str) -> Path:
    """Write a page in which every name is `text`: data set, file, model, setting, camera note."""
    results = random_results(name=text, root=text, left_out=[text], notes={"Calibration": text}, **FEW)
    written(folder, results, described={"model": text, text: text}, **{text: text})
    return folder / "evaluation.html"


def match(folder: Path, text: str) -> Path:
    """Write a match report with a floor plan in which cameras, title, warnings, notes and evidence are `text`."""
    matches = small_matches(names=tuple(f"{text}{number}" for number in range(3)))
    t = matches.tracklets
    options = ReportOptions(
        title=text,
        warnings=[text],
        left_out={text: [text]},
        scores={text: {text: 1.0}},
        paths={row: np.array([[t.start[row], 0.0, row], [t.end[row], 10.0, row]]) for row in range(len(t))},
        evidence={text: np.ones(len(matches.links.first))},
    )
    return write_match_report(matches, None, folder / "report.html", options)


def answer(folder: Path, text: str) -> Path:
    """Write the page of a search in which cameras, sources, paths, title and calibration are `text`."""
    found, options = small_answer(text)
    return write_answer_page(folder / "answer_page.html", found, options)


def adaptation(folder: Path, text: str) -> Path:
    """Write the page of an adaptation in which the model, the reason, identities and crops are named `text`."""
    held_out = {"auc": 0.5, "rank1": None, "d_prime": 1.0, "tracks": 2}
    data = {"crops": 4, "tracklets": 2, "cameras": 1, "held_out_tracklets": 1}
    verdict = {"reason": text, "given": held_out}
    state = {"source": text, "data": data, "verdict": verdict, "rounds": [], "given": held_out, "batchnorm": held_out}
    groups = {text: [(np.zeros((8, 4, 3), np.uint8), text)]}
    return write_adaptation(folder / "adaptation.html", state, groups)


def problems_of(browser: object, path: Path) -> list[str]:
    """Open a page and each of its views, and return what it did that it must not do."""
    context = browser.new_context()
    page = context.new_page()
    seen: list[str] = []
    page.on("dialog", lambda dialog: (seen.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.goto(path.as_uri())
    for tab in [*page.locator("[id^=tab-]").all(), *page.locator("#rows .row").all()[:1]]:
        if tab.is_visible():
            tab.click()
    page.wait_for_timeout(300)
    if page.evaluate("window.ran === true"):
        seen.append("a script ran")
    context.close()
    return seen


def test_these_are_all_pages() -> None:
    sources = [path.read_text("utf-8") for path in Path(reid.__file__).parent.rglob("*.py")]
    pages = {name for text in sources for name in re.findall(r'"([\w-]+\.html)"', text)}
    templates = {
        path.name for room in ("report", "server") for path in (Path(reid.__file__).parent / room).glob("*.html")
    }
    assert pages - templates == {"adaptation.html", "evaluation.html", "report.html"}


@pytest.mark.slow
@pytest.mark.parametrize("write", [evaluation, match, answer, adaptation])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_name_is_executed(browser, write, payload, tmp_path):
    path = write(tmp_path, payload)
    assert payload not in path.read_text() or "<" not in payload
    assert problems_of(browser, path) == []


@pytest.mark.slow
@pytest.mark.parametrize("write", [evaluation, match, answer, adaptation])
def test_the_content_policy_blocks_scripts_and_the_network(browser, write, tmp_path, requests):
    """Even if markup got into the page, the browser neither runs it nor asks anyone for anything."""
    address, asked = requests
    path = write(tmp_path, "town")
    injected = (
        f"<script>window.ran = true; fetch('{address}/fetched')</script><script src='{address}/script.js'></script>"
        f"<img src='{address}/image.png'><iframe src='{address}/frame'></iframe>"
        f"<link rel=stylesheet href='{address}/style.css'><img src=x onerror='window.ran = true'>"
        f"<style>body {{ background: url({address}/background.png) }}</style>"
    )
    path.write_text(path.read_text().replace("<body>", f"<body>{injected}", 1))
    assert problems_of(browser, path) == []
    assert asked == []
    without = path.read_text().replace("Content-Security-Policy", "none")
    (tmp_path / "without.html").write_text(without)
    assert "a script ran" in problems_of(browser, tmp_path / "without.html")
    assert "/image.png" in asked
