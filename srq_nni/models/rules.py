"""The rules that all checks of option files share: each complains in one sentence that names the key."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from srq_nni.errors import OptionError, did_you_mean


def known(where: str, given: Any, registry: Iterable[tuple[str, Any]]) -> None:
    """Check that ``given`` is a name of a registry of BasicSR."""
    names = [name for name, _ in registry]
    if given not in names:
        raise OptionError(f"{where}: {given!r} is not known{did_you_mean(given, names) or '; give a registered name'}")


def need(where: str, block: Any, keys: Iterable[str] = ()) -> None:
    """Check that ``block`` is a block and has these keys; ``where`` is empty for the file itself."""
    if not isinstance(block, Mapping):
        raise OptionError(f"{where}: {block!r} is not a block of keys; add its keys below it, indented")
    begin = f"{where}: " if where else ""
    for key in keys:
        if block.get(key) is None:
            near = [name for name in block if did_you_mean(name, [key])]
            if key not in block and near:
                raise OptionError(f"{begin}key '{key}' is missing; add it, or is '{near[0]}' a misspelling of it?")
            raise OptionError(f"{begin}key '{key}' is missing; add it, as in the files of basicsr_configs/")


def buildable(where: str, build: Callable[..., Any], *args: Any, **arguments: Any) -> Any:
    """Call ``build`` and turn its complaint about the arguments into an OptionError."""
    try:
        return build(*args, **arguments)
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OptionError(f"{where}: {given or 'nothing given'} does not fit ({reason}); mend it") from None


def fits(where: str, build: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Check the names of keyword arguments without calling ``build``, which may load weights or start a GPU."""
    try:
        inspect.signature(build).bind_partial(**arguments)
    except TypeError as error:
        raise OptionError(f"{where}: {error}; mend it") from None


def number(where: str, given: Any, *, least: float = 0.0, below: float = math.inf, whole: bool = False) -> None:
    """Check that ``given`` is a number, ``least <= given < below``, and a whole one if asked for."""
    kind = int if whole else int | float
    if isinstance(given, bool) or not isinstance(given, kind) or not least <= given < below:
        limits = f"from {least:g}" + (f" to below {below:g}" if below < math.inf else "")
        raise OptionError(f"{where}: {given!r} is not allowed; give a {'whole ' * whole}number {limits}")
