"""docs/basicsr.md says what the code does: its diff, its tables, its commands and its YAML."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_core import PydanticUndefined

from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.cli.pipeline import parser_for
from srq_nni.compression.bounds import BOUNDS_LEARNING_RATE, RELATIVE_LEARNING_RATE
from srq_nni.compression.options import QuantizationOptions, options_from
from srq_nni.compression.presets import WIRINGS
from srq_nni.compression.profiles import PRESET, SWITCHES, default_of
from srq_nni.models.base import find_base_model
from srq_nni.models.options import OptionLoader, apply_override, read_options
from srq_nni.quantization.layers import activation_quantizers
from tests.configs.test_stock_file import STOCK, changed_file

PAGE = (Path(__file__).parents[2] / "docs" / "basicsr.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def table(header: str) -> dict[str, list[str]]:
    """Return the rows of the table whose first column is called ``header``, by their first cell."""
    lines = PAGE.split(f"| {header} |", 1)[1].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in _while_table(lines)]
    return {row[0].strip("`"): row[1:] for row in rows}


def _while_table(lines: list[str]) -> list[str]:
    return lines[: next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))]


def value_of(cell: str) -> Any:
    return {"preset": PRESET, "1/255": 1 / 255}.get(cell, yaml.safe_load(cell.strip("`")))


def test_the_diffs_make_the_tested_file() -> None:
    text = STOCK.read_text()
    for block in blocks("diff"):
        before = "".join(line[1:] for line in block.splitlines(keepends=True) if line[0] in " -")
        after = "".join(line[1:] for line in block.splitlines(keepends=True) if line[0] in " +")
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    assert text == changed_file("pams")
    changed = [line for block in blocks("diff") for line in block.splitlines() if line[0] in "+-"]
    assert len(changed) == 9 and "Nine changed lines" in PAGE


def test_the_table_of_keys_is_complete() -> None:
    rows = table("key")
    fields = QuantizationOptions.model_fields
    assert set(rows) == set(fields)
    for key, (default, _) in rows.items():
        value = fields[key].default
        if value is PydanticUndefined or value is None:
            found = key in ("calibration", "weight_range") and default == f"`{default_of(key)}`"
            assert found or default in ("", "float", "the preset")
        else:
            assert value_of(default) == pytest.approx(value), key
    outside = PAGE.split("Keys outside the block:")[1]
    for key, rate in (("lr", BOUNDS_LEARNING_RATE), ("relative_lr", RELATIVE_LEARNING_RATE)):
        assert f"{{{key}: {rate:.0e}}}".replace("e-0", "e-") in outside


def test_the_table_of_switches_is_profiles_py() -> None:
    rows = table("switch")
    assert list(rows) == list(SWITCHES)
    for key, (default, pams, ddtb, why) in rows.items():
        switch = SWITCHES[key]
        assert why == switch.reason
        for column, pair in ((pams, switch.pams), (ddtb, switch.ddtb)):
            official = column.split(";")[0]
            assert (pair is None) == (column == ""), key
            assert pair is None or value_of(official) == pytest.approx(pair[1]), key
        defaults = [value_of(part.strip()) for part in default.split(",")]
        assert [pair[0] for pair in (switch.pams, switch.ddtb) if pair][: len(defaults)] == pytest.approx(defaults)
        assert all(value in ddtb for value in switch.official_on.values())


def test_the_wirings_are_those_there_are() -> None:
    assert tuple(table("wiring")) == WIRINGS


@pytest.mark.parametrize("block", blocks("yaml"))
def test_each_yaml_block_means_something(block: str) -> None:
    options = yaml.load(block, Loader=OptionLoader)
    if "base_model" in options:
        find_base_model(options["base_model"])
    network = build_float(options["network_g"]) if "network_g" in options else None
    if "quantization" not in options:
        assert network is not None
        return
    quantization = options_from(options["quantization"])
    if network is not None:
        insert_quantizers(network, quantization)
        assert len(list(activation_quantizers(network))) > 20


def test_each_command_is_understood() -> None:
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 7
    for line in commands:
        words = shlex.split(line)
        if words[0] == "torchrun":
            assert words[2:4] == ["-m", "srq_nni.cli.train"]
            words = ["srq", "train", *words[4:]]
        arguments = parser_for(words[1], "").parse_args(words[2:])
        options = read_options(STOCK)
        options["quantization"] = {"quantizer": "pams", "bits": 4}
        for entry in arguments.force_yml:
            apply_override(options, entry)
        options_from(options["quantization"])
        build_float(options["network_g"])
