"""Keys of an option file that nothing reads: a misspelt one is an error, another a warning.

BasicSR ignores what it does not know. Which keys it knows is written nowhere, so they are taken from its code: every
name that the modules of the model and the datasets of the run look up, beside the keys that the schema describes.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from basicsr.utils.registry import DATASET_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from pydantic import BaseModel

from srq_nni.archs.quantized_arch import OWN
from srq_nni.compression.options import QuantizationOptions
from srq_nni.errors import OptionError
from srq_nni.models.base import find_base_model
from srq_nni.models.schema import Block, Dataset, Logger, Metric, OptionFile, Train, Validation
from srq_nni.models.teacher import TEACHER_LOSSES

PIPELINE = ("basicsr.train", "basicsr.test", "basicsr.data", "basicsr.utils.options", "basicsr.utils.logger")
LOOKUPS = ("get", "pop", "setdefault")
HOMES: dict[str, type[BaseModel]] = {
    "quantization": QuantizationOptions,
    "train": Train,
    "val": Validation,
    "logger": Logger,
}
ONLY_QUANTIZED: dict[str, tuple[str, ...]] = {
    "": ("network_t",),
    "train": (*TEACHER_LOSSES, "distill_flips", "equalize_iter", "optim_q"),
    "path": ("pretrain_network_t",),
}
LIKENESS = 0.75  # skt_opts and optim-q are alike to what was meant, fix_flow and warm_up to nothing


def check_spelling(opt: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each key that nothing reads and that resembles no other.

    Args:
        opt: options with values of the right kinds (``schema.check_kinds``) and a registered ``model_type``.

    Raises:
        OptionError: for one that resembles a key that is read, if all code that could read it is BasicSR's or ours.
    """
    classes: list[type] = [MODEL_REGISTRY.get(opt["model_type"])]
    if "base_model" in opt:
        classes.append(find_base_model(opt["base_model"]))
    if all(_package(kind) in OWN for kind in classes):
        _refuse_misplaced(opt)
    read = _read_by(classes)
    warnings = [
        *_unread("", opt, OptionFile, read, classes, beginnings=("network_",)),
        *_unread("train", opt.get("train"), Train, read, classes),
        *_unread("val", opt.get("val"), Validation, read, classes),
        *_unread("logger", opt.get("logger"), Logger, read | {"wandb"}, classes),
    ]
    for name, dataset in opt["datasets"].items():
        if dataset.get("type") in DATASET_REGISTRY:
            kind = DATASET_REGISTRY.get(dataset["type"])
            warnings += _unread(f"datasets: {name}", dataset, Dataset, _read_by([kind]), [kind])
    for name, metric in ((opt.get("val") or {}).get("metrics") or {}).items():
        if metric.get("type") in METRIC_REGISTRY:
            function = METRIC_REGISTRY.get(metric["type"])
            arguments = frozenset(inspect.signature(function).parameters)
            warnings += _unread(f"val: metrics: {name}", metric, Metric, arguments, [function])
    return warnings


def ignored_settings(opt: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each key that a QuantSRModel reads and the model of these options does not.

    They are no errors, since another ``model_type`` and no ``quantization`` block make a float run of any file.
    """
    read = _read_by([MODEL_REGISTRY.get(opt["model_type"])])
    return [
        f"{where}{': ' if where else ''}{key}: model_type '{opt['model_type']}' does not read it, a QuantSRModel does"
        for where, keys in ONLY_QUANTIZED.items()
        for key in keys
        if key not in read and ((opt.get(where) or {}) if where else opt).get(key) is not None
    ]


def _refuse_misplaced(opt: Mapping[str, Any]) -> None:
    """Refuse keys in a block that does not know them and beside one that does, where nothing would read them."""
    blocks: dict[str, type[BaseModel]] = {"": OptionFile, **HOMES}
    for where, described in blocks.items():
        block = opt.get(where) if where else opt
        for key in block if isinstance(block, Mapping) else ():
            home = next((name for name, block in HOMES.items() if key in block.model_fields), None)
            if home is not None and key not in described.model_fields:
                place = f"in '{where}'" if where else "outside the blocks"
                raise OptionError(
                    f"key '{key}' has no effect {place}; move it into '{home}' (with --force_yml: {home}:{key}=..)"
                )


def _unread(
    where: str,
    block: Mapping[str, Any] | None,
    described: type[Block],
    read: frozenset[str],
    readers: Iterable[Any],
    beginnings: tuple[str, ...] = (),
) -> list[str]:
    own = all(_package(reader) in OWN for reader in readers)
    sentences = []
    for key in block or ():
        if key in described.model_fields or key in read or str(key).startswith(beginnings or ("\0",)):
            continue
        sentence = f"{where}{': ' if where else ''}key '{key}' is not known"
        near = None if key in _read_anywhere() else _nearest(str(key), described.model_fields)
        if near and own:
            raise OptionError(f"{sentence}; did you mean '{near}'?")
        sentences.append(f"{sentence}; nothing reads it" if own else f"{sentence} to BasicSR and srq-nni")
    return sentences


def _nearest(key: str, names: Iterable[str]) -> str | None:
    plain = key.lower().replace("-", "_").replace(" ", "_")
    return next(iter(get_close_matches(plain, names, n=1, cutoff=LIKENESS)), None)


def _read_by(classes: Iterable[type]) -> frozenset[str]:
    """Return what the modules of these classes, of their bases, and BasicSR's pipelines look up."""
    modules = {base.__module__ for kind in classes for base in kind.__mro__ if _package(base) != "builtins"}
    return frozenset().union(*(_looked_up(module) for module in (*modules, *PIPELINE)))


def _read_anywhere() -> frozenset[str]:
    """Return what any model or dataset looks up: ``optim_d`` is no misspelt ``optim_q``."""
    return _read_by(kind for registry in (MODEL_REGISTRY, DATASET_REGISTRY) for _, kind in registry)


def _package(thing: Any) -> str:
    return str(thing.__module__).split(".")[0]


@cache
def _looked_up(module: str) -> frozenset[str]:
    """Return the names that a module looks up, as ``x["name"]``, ``x.get("name")`` or ``"name" in x``.

    Where its source is not to be had, that is nothing.
    """
    try:
        tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    except (ImportError, OSError, SyntaxError, TypeError):
        return frozenset()
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript):
            found.append(node.slice)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOOKUPS:
            found += node.args[:1]
        elif isinstance(node, ast.Compare):
            found.append(node.left)
    return frozenset(
        str(node.value) for node in found if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
