"""Reading a BasicSR option file safely, with command-line overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from srq_nni.errors import OptionError, did_you_mean

_FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


class OptionLoader(yaml.SafeLoader):
    """A safe YAML loader that also reads ``1e-4`` as a number and applies ``overrides`` (``a:b=value``)."""

    overrides: Sequence[str] = ()

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """Return a number; ``12:30:45`` is a text as in YAML 1.2, and not 45045 to the base of 60."""
        text = str(self.construct_scalar(node))
        if ":" in text:
            return text
        whole = node.tag.endswith(":int")
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)

    def get_single_data(self) -> Any:
        options = super().get_single_data()
        for entry in self.overrides if isinstance(options, dict) else ():
            apply_override(options, entry)
        return options


for _kind in ("int", "float"):
    OptionLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", OptionLoader.construct_number)
OptionLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def loader_with(overrides: Sequence[str]) -> type[OptionLoader]:
    """Return an ``OptionLoader`` class that applies these overrides."""
    return type("OverridingLoader", (OptionLoader,), {"overrides": tuple(overrides)})


def read_options(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the options of a YAML file, with overrides applied.

    Raises:
        OptionError: if the file is missing, not YAML, not a mapping, or an override does not fit.
    """
    path = Path(path)
    if path.is_dir():
        raise OptionError(f"option file '{path}' is a folder; give the path of a YAML file in it")
    if not path.is_file():
        siblings = [item.name for item in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise OptionError(
            f"option file '{path}' does not exist; give the path of a YAML file{did_you_mean(path.name, siblings)}"
        )
    try:
        with path.open(encoding="utf-8") as file:
            options = yaml.load(file, Loader=loader_with(overrides))
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise OptionError(f"option file '{path}' is not plain YAML ({problem}); mend that line") from None
    except UnicodeDecodeError:
        raise OptionError(f"option file '{path}' is not text; give a YAML file in UTF-8") from None
    except OptionError:
        raise
    except (ValueError, RecursionError) as error:  # a value such as 2024-99-99, or a thousand open brackets
        raise OptionError(f"option file '{path}' has a value that cannot be read ({error}); mend it") from None
    if not isinstance(options, dict):
        raise OptionError(
            f"option file '{path}' holds no mapping (lines of KEY: VALUE); start from a file in basicsr_configs/"
        )
    return options


def apply_override(options: Any, entry: str) -> None:
    """Set ``a:b=value`` in place; the value is parsed as YAML, never evaluated.

    Raises:
        OptionError: if the entry is malformed or a parent key does not exist.
    """
    keys, equals, text = entry.partition("=")
    path = [key.strip() for key in keys.split(":")]
    if not equals or not all(path):
        raise OptionError(f"--force_yml '{entry}' is not KEY:KEY=VALUE; write for example quantization:bits=2")
    parent = options
    for depth, key in enumerate(path[:-1]):
        if not isinstance(parent, dict) or not isinstance(parent.get(key), dict):
            known = parent if isinstance(parent, dict) else {}
            where = ":".join(path[: depth + 1])
            raise OptionError(
                f"--force_yml '{entry}': the options have no block '{where}'; "
                f"name an existing one{did_you_mean(key, known)}"
            )
        parent = parent[key]
    try:
        value = yaml.load(text.strip(), Loader=OptionLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise OptionError(f"--force_yml '{entry}': the value is not plain YAML; quote it") from None
    parent[path[-1]] = None if value == "None" else value
