"""The report in a real browser: no error on its console, every picture decodes, something is drawn."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
)  # fmt: skip
# Put into a copy of the page by the test; the page itself has no script and forbids any.
PROBE = """<script>addEventListener("load", () => {
  const images = [...document.images], wide = document.documentElement.scrollWidth;
  const done = images.filter(image => image.complete && image.naturalWidth > 0).length;
  document.body.dataset.probe = `${done} of ${images.length}, ${document.styleSheets.length} sheet, ${wide} wide`;
})</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium")
    return found


def open_page(browser, profile, page, *flags: str) -> subprocess.CompletedProcess:
    command = [browser, *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, evaluated_run):
    """The page, and a copy with the probe instead of the policy against scripts."""
    folder = tmp_path_factory.mktemp("browser")
    content = (evaluated_run / "report.html").read_text()
    (folder / "report.html").write_text(content)
    probed, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', PROBE, content)
    assert count == 1
    (folder / "probed.html").write_text(probed)
    return folder


@pytest.mark.parametrize("width", [1200, 390])
def test_every_picture_decodes_and_the_page_is_as_wide_as_the_window(browser, folder, tmp_path, width):
    result = open_page(browser, tmp_path, folder / "probed.html", f"--window-size={width},900", "--dump-dom")
    found = re.search(r'data-probe="(\d+) of (\d+), 1 sheet, (\d+) wide"', result.stdout)
    assert found, result.stderr[-2000:]
    decoded, images, wide = map(int, found.groups())
    assert decoded == images > 100
    # Headless windows are at least 500 pixels wide.
    assert wide <= max(width, 500)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_on_the_console_and_text_stands_out_in_light_and_dark_mode(browser, folder, tmp_path, scheme):
    shot = tmp_path / "shot.png"
    dark = ("--blink-settings=preferredColorScheme=0",) if scheme == "dark" else ()
    flags = ("--window-size=1000,1400", f"--screenshot={shot}", *dark)
    result = open_page(browser, tmp_path / "profile", folder / "report.html", *flags)
    assert "CONSOLE" not in result.stderr, result.stderr[-2000:]
    grey = np.asarray(Image.open(shot).convert("L")).astype(int)
    paper = grey[2, 2]
    assert (paper > 200) if scheme == "light" else (paper < 60)
    assert 0.01 < (abs(grey - paper) > 120).mean() < 0.5
