"""The parser of every command: what is wrong with its arguments is one sentence like any other error."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from srq_nni.errors import OptionError, did_you_mean


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations and raises an OptionError instead of ending the process."""

    def __init__(self, command: str, description: str | None) -> None:
        super().__init__(prog=f"srq {command}", description=description, allow_abbrev=False)

    def add_debug(self, text: str = "show tracebacks") -> None:
        """Add the flag that ``main.exit_with`` looks for."""
        self.add_argument("--debug", action="store_true", help=text)

    def parse_args(self, *args: Any, **settings: Any) -> Any:
        known, unknown = self.parse_known_args(*args, **settings)
        if unknown:
            flags = (did_you_mean(word, self._option_string_actions) for word in unknown if word.startswith("--"))
            near = next(filter(None, flags), "")
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        return known

    def error(self, message: str) -> NoReturn:
        one_line = " ".join(message.split())
        raise OptionError(f"{self.prog.removeprefix('srq ')}: {one_line}; {self.prog} --help shows what is allowed")
