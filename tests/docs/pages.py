"""The code blocks of a page, and what running one means.

A page is run from top to bottom in one namespace and one folder, so that later blocks build on earlier ones. What
cannot run in a test has a comment in front of its fence, ``<!-- not run: REASON -->``.
"""

from __future__ import annotations

import itertools
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from jsonschema import Draft202012Validator

from srq_nni.cli.main import main
from srq_nni.models.json_schema import json_schema
from srq_nni.models.options import OptionLoader
from tests.sr_data import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
REASON = re.compile(r"<!-- not run: (.+?) -->\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block; ``line`` is that of its first line of code, counted from 1."""

    page: Path
    line: int
    language: str
    code: str
    reason: str  # why it is not run, or empty

    @property
    def where(self) -> str:
        """File and line, as tracebacks and editors name them."""
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    def run(self, namespace: dict[str, Any]) -> None:
        """Run the block in the current folder; raises what it raises."""
        RUN[self.language](self, namespace)


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page."""
    text = page.read_text()
    for match in FENCE.finditer(text):
        indent, language, code = match.groups()
        lines = [line.removeprefix(indent) for line in code.splitlines(keepends=True)]
        reason = REASON.search(text[: match.start()])
        first = text.count("\n", 0, match.start(3)) + 1
        yield Block(page, first, language, "".join(lines), reason[1] if reason else "")


def _python(block: Block, namespace: dict[str, Any]) -> None:
    """Run it with the page as the file and its own line numbers, so that a traceback points at the page."""
    exec(compile("\n" * (block.line - 1) + block.code, str(block.page), "exec"), namespace)


def _shell(block: Block, namespace: dict[str, Any]) -> None:
    """Run commands in this process: a new one would spend ten seconds on imports alone."""
    for command in commands(block):
        program, *arguments = command
        if program == "srq":
            main(arguments)
        else:
            script, *rest = arguments
            folder = str(Path(script).resolve().parent)
            with mock.patch.object(sys, "argv", [script, *rest]), mock.patch.object(sys, "path", [folder, *sys.path]):
                runpy.run_path(script, run_name="__main__")


def commands(block: Block) -> list[list[str]]:
    """Return the words of each command of a shell block: ``srq ..`` and ``python SCRIPT ..``, nothing else."""
    lines = block.code.replace("\\\n", " ").splitlines()
    words = [words for line in lines if (words := shlex.split(line, comments=True))]
    for command in words:
        assert command[0] in ("srq", "python"), f"{block.where}: nobody runs '{shlex.join(command)}'"
        assert not {"|", "&&", ";", ">", "<"} & set(itertools.chain(*command)), f"{block.where}: one command a line"
    return words


def _options(block: Block, namespace: dict[str, Any]) -> None:
    """Check a part of an option file: what it holds must be allowed, what it leaves out may stand elsewhere."""
    schema = json_schema()
    for part in (schema, *schema["$defs"].values()):
        part.pop("required", None)
    problems = [p.message for p in Draft202012Validator(schema).iter_errors(options_in(block) or {})]
    assert not problems, f"{block.where}: {problems}"


def options_in(block: Block) -> Any:
    """Return what a YAML block holds, read as ``srq train`` reads it."""
    return yaml.load(block.code, Loader=OptionLoader)


def _shown(block: Block, namespace: dict[str, Any]) -> None:
    """Not code: formulas, output, changes of a file. Commands belong into ``bash``."""
    for line in block.code.splitlines():
        assert block.language == "console" or not re.match(r"(srq [a-z]|python |pip |torchrun )", line), line


RUN = {"python": _python, "bash": _shell, "yaml": _options, "text": _shown, "console": _shown, "diff": _shown}
