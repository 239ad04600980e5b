"""The page in Debian's chromium, as a reader sees it: on a desktop, on a phone, in the dark; nothing is fetched."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
DARK = "--blink-settings=preferredColorScheme=0"
LOOK = """<script>addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body *")].filter(
    (one) => !one.closest(".scroll, dialog, svg") && one.getBoundingClientRect().right > innerWidth + 1);
  const broken = [...document.images].filter((one) => one.id !== "zoom-image" && one.loading !== "lazy" &&
    !one.naturalWidth);
  document.querySelector(".crops button").click();
  const open = document.getElementById("zoom").open;
  document.documentElement.dataset.seen = JSON.stringify([document.documentElement.scrollWidth <= innerWidth,
    wide.map((one) => one.tagName), broken.length, open, getComputedStyle(document.body).backgroundColor]);
});</script>"""


def chromium(folder: Path, *arguments: str) -> str:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def seen(page: Path, folder: Path, *arguments: str) -> str:
    """What a script inside the page finds: [fits, elements that do not, broken images, zoom opens, background]."""
    watched = folder / "watched.html"
    watched.write_text(page.read_text().replace("</body>", LOOK + "</body>"))
    found = re.search(r'data-seen="([^"]+)"', chromium(folder, *arguments, "--dump-dom", watched.as_uri()))
    assert found is not None
    return found[1].replace("&quot;", '"')


@pytest.mark.parametrize("width", [390, 1280])
def test_fits_phone_and_desktop(page: Path, tmp_path: Path, width: int) -> None:
    assert seen(page, tmp_path, f"--window-size={width},900") == '[true,[],0,true,"rgb(255, 255, 255)"]'


def test_dark_theme(page: Path, tmp_path: Path) -> None:
    assert seen(page, tmp_path, DARK, "--window-size=390,900") == '[true,[],0,true,"rgb(13, 17, 23)"]'


@pytest.mark.parametrize(("flags", "background"), [([], 255), ([DARK], 13)])
def test_it_shows_pictures_and_text(page: Path, tmp_path: Path, flags: list[str], background: int) -> None:
    shot = tmp_path / "shot.png"
    chromium(tmp_path, *flags, "--window-size=800,2000", f"--screenshot={shot}", page.as_uri())
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels[2, 2, 0] == background
    rows = (np.abs(pixels.astype(int) - pixels[2, 2]).max(2) > 40).any(1)
    assert rows.mean() > 0.5  # most lines of the page have something on them
    colours = pixels.astype(np.uint32) @ np.array([1, 256, 65536], dtype=np.uint32)
    assert len(np.unique(colours)) > 5000  # photographs, not boxes
