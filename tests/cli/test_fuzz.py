"""A few hundred of the wrong option files and command lines of ``fuzzing.py``, and ten thousand with ``-m slow``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.fuzzing import Fuzzer, Outcome, _judged, run

CASES = 200
SECONDS = 30.0  # of a slow or busy machine, which then sees fewer cases


def test_wrong_files_and_lines_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = run(range(CASES), tmp_path, SECONDS)
    assert set(counts) <= {"accepted", "refused"}, capsys.readouterr().out
    assert counts["refused"] > counts["accepted"] or sum(counts.values()) < 20


@pytest.mark.slow
def test_ten_thousand_wrong_files_and_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = run(range(10_000), tmp_path)
    assert set(counts) == {"accepted", "refused"} and sum(counts.values()) == 10_000, capsys.readouterr().out


def test_the_fuzzer_sees_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback, a file that stays, a refusal that wrote something: none passes for a refusal."""
    fuzzer = Fuzzer(tmp_path)

    def outcome(error: BaseException | None, *names: str) -> Outcome:
        def command(argv: list[str]) -> None:
            for name in names:
                Path(name).write_text("x")
            if error is not None:
                raise error

        monkeypatch.setattr("tests.cli.fuzzing.main", command)
        return fuzzer.case(0)

    assert outcome(None).kind == "accepted"
    assert outcome(ValueError("a bug")) == Outcome("traceback", "ValueError: a bug", fuzzer.case(0).argv)
    assert outcome(None, ".x.1.part").kind == "temporary file"
    assert outcome(SystemExit(1)).kind == "status or text"
    assert _judged(2, "srq: warning: one\nsrq: error: two\n") == ("refused", "two")
    assert _judged(2, "srq: error: two\nlines\n")[0] == _judged(2, "usage: srq\n")[0] == "status or text"
    monkeypatch.setattr("tests.cli.fuzzing._judged", lambda *_: ("refused", "sentence"))
    assert outcome(SystemExit(2), "half.onnx") == Outcome(
        "written and refused", "['half.onnx']: sentence", fuzzer.case(0).argv
    )
