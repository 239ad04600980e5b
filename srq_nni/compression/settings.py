"""Which settings of a config_list entry reach which of its targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from srq_nni.quantization.methods import get_method
from srq_nni.quantization.targets import INPUT, WEIGHT


def settings_of(method: str, target: str) -> list[str]:
    """Return the settings that a quantizer of ``method`` on ``target`` takes beside its bits."""
    of_method = get_method(method)
    if target == WEIGHT:
        return list(of_method.weight_options)
    return [*of_method.activation_options, *(["dynamic_ratio"] if method == "ddtb" else [])]


def all_settings(method: str) -> list[str]:
    """Return the settings of both kinds of targets, each once."""
    return list(dict.fromkeys([*settings_of(method, INPUT), *settings_of(method, WEIGHT)]))


def named_targets(entry: Mapping[str, Any]) -> list[Any]:
    """Return the targets of an entry as it spells them, in NNI's keys of version 2 as well, or the default ones."""
    for key in ("target_names", "quant_types"):
        if isinstance(entry.get(key), list | tuple):
            return list(entry[key])
    below = entry.get("target_settings")
    return (list(below) if isinstance(below, Mapping) else []) or [INPUT, WEIGHT]


def idle(keys: Iterable[str], entry: Mapping[str, Any], method: str) -> list[str]:
    """Return those of ``keys``, settings of ``method``, that no target of ``entry`` takes."""
    taken = {key for target in named_targets(entry) for key in settings_of(method, target)}
    return [key for key in keys if key in all_settings(method) and key not in taken]
