"""The site builds without a warning, holds the whole YAML reference, and needs nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
import yaml

from srq_nni.models.json_schema import json_schema
from tests.sr_data import REPOSITORY

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}


class Page(HTMLParser):
    """What a page of HTML loads, where it links to, its anchors and its text in cells of tables."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif (address := values.get(LOADED.get(tag, ""))) and values.get("rel") != "canonical":
            self.loads.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_page_of_the_folder_is_on_the_site(site: Path) -> None:
    built = {path.parent.name for path in site.glob("*/index.html")}
    assert built == {path.stem for path in (REPOSITORY / "docs").glob("*.md")} - {"index"} | {"yaml-reference"}


def test_links_and_anchors_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    lost, followed = [], 0
    for page in pages.values():
        if page.path.name == "404.html":  # its links start at the address of the site, which a copy does not have
            continue
        for link in page.links:
            if urlsplit(link).scheme:
                continue
            address, anchor = urldefrag(link)
            target = (page.path.parent / unquote(address)).resolve() if address else page.path
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].anchors if target in pages else set()
            followed += 1
            if not target.is_file() or (anchor and unquote(anchor) not in known):
                lost.append(f"{page.path.relative_to(site)}: {link}")
    assert lost == []
    assert followed > 300


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    loaded = [(page.path, address) for page in pages.values() for address in page.loads]
    assert len(loaded) > 3 * len(pages)
    assert [found for found in loaded if urlsplit(found[1]).netloc] == []
    styles = [path.read_text() for path in site.rglob("*.css")]
    assert styles and [re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']+", style) for style in styles] == (
        [[]] * len(styles)
    )


def test_the_yaml_reference_has_every_key_of_the_schema(pages: dict[Path, Page], site: Path) -> None:
    html = (site / "yaml-reference" / "index.html").read_text()
    cell = r"\s*<td>(.*?)</td>"
    rows = re.findall(rf"<tr>\s*<td><code>([^<]+)</code></td>{cell}{cell}{cell}", html, re.DOTALL)
    schema = json_schema()
    wanted = sorted(key for block in blocks_of(schema) for key in block.get("properties", {}))
    assert sorted(key for key, *_ in rows) == wanted
    assert len(wanted) > 60
    assert [key for key, allowed, _, meaning in rows if not allowed or not meaning] == []


def blocks_of(schema: dict) -> Iterator[dict]:
    yield schema
    yield from schema["$defs"].values()


def test_the_menu_is_what_the_settings_promise() -> None:
    settings = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
    assert settings["theme"]["font"] is False, "fonts would come from Google"
    assert set(settings["validation"].values()) == {"warn"}, "--strict makes errors of warnings alone"
