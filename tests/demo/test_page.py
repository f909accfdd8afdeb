"""The demo page in a real browser: chat, the way from noise, attention, errors in one line, nothing from elsewhere."""

import dataclasses
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import transfusion

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")
pytestmark = pytest.mark.soak
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT = 300_000  # milliseconds: the first answer compiles


@pytest.fixture(scope="module")
def served(tiny_run, tmp_path_factory):
    """The address of a page that a process of its own serves, and what it printed."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    log = tmp_path_factory.mktemp("demo") / "log"
    command = [sys.executable, "-m", "transfusion.demo", "--workdir", str(tiny_run), "--port", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen([*command, "--max_pixels=5000"], stdout=file, stderr=file)
    try:
        until = time.monotonic() + 300
        while "open http" not in log.read_text():
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-2000:]
            time.sleep(0.5)
        again = subprocess.run(command, capture_output=True, text=True)
        assert again.returncode == 2 and f"error: cannot listen on 127.0.0.1:{port}" in again.stderr
        yield f"http://127.0.0.1:{port}/", log
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def page(served):
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium")
    problems: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1200})
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        inside = (served[0], "data:", "blob:")
        page.on("request", lambda asked: None if asked.url.startswith(inside) else problems.append(asked.url))
        page.set_default_timeout(WAIT)
        page.goto(served[0])
        page.wait_for_selector("#box textarea")
        yield page, problems
        browser.close()


def ask(page, text: str, ends: str = "with seed") -> list[str]:
    """Sends a message and returns all that the status said until the answer was there."""
    page.fill("#box textarea", text)
    page.press("#box textarea", "Enter")
    said: list[str] = []
    until = time.monotonic() + WAIT / 1000
    while not said or ends not in said[-1]:
        assert time.monotonic() < until, said
        now = page.inner_text("#status").strip()
        if now and now not in said[-1:]:
            said.append(now)
        page.wait_for_timeout(15)
    return said


def test_a_visitor_draws_watches_looks_inside_and_meets_errors(page, tmp_path):
    page, problems = page
    page.click("#wish label:has-text('draw')")
    said = ask(page, "a handwritten seven")
    assert [line for line in said if "t = " in line] and "Answered by image, with seed 0" in said[-1]
    page.wait_for_selector("#chat .bot img, #chat [data-testid='bot'] img")
    shot = tmp_path / "noisy.png"
    page.locator("#noisy img").screenshot(path=shot)
    assert np.asarray(Image.open(shot)).std() > 5
    assert page.input_value("#seed input") == "1"
    page.click("#look")
    page.wait_for_selector("#attention img")
    assert "tokens, 2 layers of 2 heads" in page.inner_text("#status")
    page.click("#wish label:has-text('write')")
    assert "Answered by text, with seed 1" in ask(page, "a ")[-1] or "nothing" in page.inner_text("#status")
    large = tmp_path / "large.png"
    Image.new("RGB", (100, 100)).save(large)
    page.set_input_files("#box input[type=file]", large)
    page.wait_for_selector("#box .thumbnails, #box .thumbnail-item, #box img")
    (line,) = [line for line in ask(page, "what is this?", "error") if "error" in line]
    assert "100x100 pixels: at most 5,000" in line
    assert not problems


def test_a_page_tells_mistakes_in_one_line_and_no_paths(tiny_run):
    import gradio

    from transfusion.demo.page import Page

    run = transfusion.load_run(tiny_run)
    page = Page(run, 100)
    last = list(page.reply({"text": "", "files": [__file__]}, [], [], False, False, "draw", 1.0, 3, 0.0, 4, 0, True))[
        -1
    ]
    assert last[5].startswith("**error:** this file is no picture") and "\n" not in last[5]
    assert page.inside([], False, 1, 0)[-1] == "**error:** say something first"
    blocks = page.blocks()
    assert blocks.title == "transfusion" and not blocks.analytics_enabled
    assert all(not isinstance(block, gradio.File) for block in blocks.blocks.values())
    several = dataclasses.replace(run, workdir=str(tiny_run))
    assert str(tiny_run) not in Page(several, 100)._introduction()  # paths of this machine are nobody's business
