"""The page in a real browser."""

from __future__ import annotations

import threading
import time

import pytest

from tests.server.conftest import picture

uvicorn = pytest.importorskip("uvicorn")


@pytest.fixture
def address(make_app):
    """Start a server on a free port."""
    server = uvicorn.Server(uvicorn.Config(make_app(token="t" * 24), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/#token={'t' * 24}"
    server.should_exit = True
    thread.join(10)


@pytest.mark.slow
def test_a_photo_is_searched_confirmed_and_downloaded(browser, address) -> None:
    from playwright.sync_api import expect

    page = browser.new_page()
    page.set_default_timeout(20_000)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on(
        "request",
        lambda r: None if r.url.startswith(("http://127.0.0.1", "blob:", "data:")) else problems.append(r.url),
    )
    page.goto(address)
    assert page.url.endswith("/")  # the token is not in the address any more
    page.set_input_files("#photo", {"name": "x.png", "mimeType": "image/png", "buffer": picture("red", (100, 200))})
    page.click("#search")
    page.wait_for_selector("#message.wrong")
    assert "box" in page.inner_text("#message")
    page.locator("#shown").scroll_into_view_if_needed()
    place = page.locator("#shown").bounding_box()
    page.mouse.move(place["x"] + 10, place["y"] + 10)
    page.mouse.down()
    page.mouse.move(place["x"] + 50, place["y"] + 90)
    page.mouse.up()
    assert int(page.input_value("#box-w")) > 10
    page.click("#no-box")
    for name, value in {"x": 10, "y": 5, "w": 40, "h": 90}.items():
        page.fill(f"#box-{name}", str(value))
    assert [page.input_value(f"#box-{name}") for name in "xywh"] == ["10", "5", "40", "90"]
    assert page.locator("#box").is_visible()
    problems.clear()  # the refused search is in the console
    page.focus("#search")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit")
    assert page.locator(".hit").count() == 4
    page.locator(".hit").nth(0).focus()
    page.keyboard.press("c")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("c")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("r")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "constraints-monday.json"
    page.click("#again")
    expect(page.locator(".hit")).to_have_count(3)
    assert page.locator(".hit.confirmed").count() == 2
    assert page.locator("#trajectory h2").inner_text() == "Trajectory of 2 sightings by 2 cameras."
    page.click("#trajectory li:nth-child(2) button")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("hall, ")
    assert not problems
    page.close()
