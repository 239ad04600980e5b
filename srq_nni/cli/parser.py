"""The parser of every command: what is wrong with its arguments is one sentence like any other error."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from srq_nni.errors import OptionError, nearest


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations and raises an OptionError instead of ending the process."""

    def __init__(self, command: str, description: str | None) -> None:
        super().__init__(prog=f"srq {command}", description=description, allow_abbrev=False)
        self._words: Sequence[str] = ()

    def add_debug(self, text: str = "show tracebacks") -> None:
        """Add the flag that ``main.exit_with`` looks for."""
        self.add_argument("--debug", action="store_true", help=text)

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> Any:  # type: ignore[override]
        self._words = args
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._hint(unknown)}")
        return known

    def error(self, message: str) -> NoReturn:
        if message.endswith("are required: -opt"):
            message += self._hint([word for word in self._words if word.endswith((".yml", ".yaml"))])
        one_line = " ".join(message.split())
        raise OptionError(f"{self.prog.removeprefix('srq ')}: {one_line}; {self.prog} --help shows what is allowed")

    def _hint(self, unknown: Sequence[str]) -> str:
        """Return what the first word, misspelt or a file without its flag, was probably meant to be."""
        flags = {flag.lstrip("-"): flag for flag in self._option_string_actions}
        for word in unknown:
            if word.startswith("-"):
                found = flags.get(nearest(word.partition("=")[0].lstrip("-"), flags) or "")
            else:
                flag = next((flag for flag in ("-opt", "-o") if flags.get(flag[1:]) and flag not in self._words), None)
                found = f"{flag} {word}" if flag else None
            if found:
                return f"; did you mean '{found}'?"
        return ""
