"""The code blocks of README.md and docs/ run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from tests.docs import project
from tests.docs.pages import PAGES, RUN, Block, blocks, options_in

EVERY_BLOCK = [block for page in PAGES for block in blocks(page)]
WITH_CODE = [page for page in PAGES if any(True for _ in blocks(page))]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What takes time, made once for all processes of pytest-xdist."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return tmp_path_factory.getbasetemp().parent / "documentation"
    return tmp_path_factory.mktemp("template") / "documentation"


@pytest.fixture
def reader(template: Path, work_folder: Path) -> Path:
    """A reader's folder, which is the current one."""
    with FileLock(f"{template}.lock"):
        if not template.is_dir():
            project.fill(work_folder)
            shutil.copytree(work_folder, template)
        else:
            shutil.copytree(template, work_folder, dirs_exist_ok=True)
    project.link(work_folder)
    return work_folder


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, reader: Path) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.reason:
            continue
        try:
            block.run(namespace)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{block.where}: this block failed\n{block.code}") from error


@pytest.mark.parametrize("block", [block for block in EVERY_BLOCK if block.reason], ids=lambda block: block.where)
def test_a_block_that_is_not_run_says_why(block: Block) -> None:
    assert block.language in ("python", "bash"), "only code can be left out"
    assert len(block.reason.split()) >= 4
    pytest.skip(block.reason)


def test_every_block_has_a_language_that_is_looked_at() -> None:
    assert [block.where for block in EVERY_BLOCK if block.language not in RUN] == []
    ran = [block for block in EVERY_BLOCK if block.language in ("python", "bash", "yaml") and not block.reason]
    assert len(ran) > 25, "the pages have lost their code, or this file cannot read it any more"


def test_the_first_page_of_the_site_changes_what_the_readme_changes() -> None:
    (block,) = (block for block in EVERY_BLOCK if block.page.name == "index.md" and block.language == "yaml")
    options, readme = options_in(block), project.readme_block()
    assert project.merged(readme, options) == readme


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tests.docs.pages.REPOSITORY", tmp_path)
    return tmp_path / "page.md"


def test_a_failing_block_names_page_and_line(page: Path) -> None:
    page.write_text("# Page\n\n```python\nx = 1\n```\n\n- a list\n\n  ```python\n  assert x == 1\n  x / 0\n  ```\n")
    first, second = blocks(page)
    assert (first.where, second.where, second.code) == ("page.md:4", "page.md:10", "assert x == 1\nx / 0\n")
    namespace: dict[str, object] = {}
    first.run(namespace)
    with pytest.raises(ZeroDivisionError) as failure:
        second.run(namespace)
    assert (str(failure.traceback[-1].path), failure.traceback[-1].lineno + 1) == (str(page), 11)


@pytest.mark.parametrize(
    "fenced",
    [
        "text\nsrq train -opt my.yml",
        "bash\nrm -r experiments",
        "bash\nsrq schema | head",
        "bash\nsrq schema -o",
        "yaml\nquantization: {quantiser: pams}",
        "python\nassert False",
    ],
)
def test_wrong_blocks_fail(fenced: str, page: Path) -> None:
    page.write_text(f"```{fenced}\n```\n")
    (block,) = blocks(page)
    with pytest.raises((AssertionError, SystemExit)):
        block.run({})


def test_a_reason_belongs_to_the_next_block_alone(page: Path) -> None:
    page.write_text("<!-- not run: needs a GPU -->\n\n```python\n1 / 0\n```\n\n```bash\nsrq --version\n```\n")
    assert [block.reason for block in blocks(page)] == ["needs a GPU", ""]
