"""The commands in docs/summary.md print what stands below them."""

from __future__ import annotations

import re
import shlex

import pytest

from srq_nni.cli.main import main
from tests.sr_data import REPOSITORY

BLOCK = re.compile(r"```console\n\$ srq (?P<command>[^\n]*)\n(?P<output>.*?)```", re.DOTALL)
PAGE = REPOSITORY / "docs" / "summary.md"


@pytest.mark.parametrize("block", list(BLOCK.finditer(PAGE.read_text())), ids=lambda block: block["command"])
def test_the_page_shows_what_the_command_prints(
    block: re.Match[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    main(shlex.split(block["command"]))
    assert capsys.readouterr().out == block["output"]
