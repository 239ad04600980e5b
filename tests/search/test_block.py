"""The block that is written means what was measured: bits, and how every grid starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from srq_nni.archs.quantized_arch import QuantizedNetwork
from srq_nni.compression.sites import Site
from srq_nni.errors import OptionError
from srq_nni.quantization.targets import WEIGHT
from srq_nni.search import block as block_module
from srq_nni.search.bank import Bank
from srq_nni.search.block import quantization_block
from srq_nni.search.setup import Problem, problem_from
from tests.search.conftest import NETWORK, options_for

MODULE = "body.0.conv1"
Options = dict[str, Any]


@pytest.fixture(scope="module")
def ddtb(crops: Path) -> Problem:
    return problem_from(options_for(crops, "ddtb"), widths=(8, 4), count=1, size=16)


def block_with(problem: Problem, activation: Options, weight: Options, monkeypatch: pytest.MonkeyPatch) -> Options:
    """Return the block of 4 bits everywhere, as if these options had measured best at every site."""

    def options(bank: Bank, site: Site, bits: int) -> Options:
        return dict(weight if site.target == WEIGHT else activation)

    monkeypatch.setattr(Bank, "options", options)
    return quantization_block(problem, {unit.name: 4 for unit in problem.units})


def below(**settings: Any) -> Options:
    return {"quant_dtype": "int4", **settings}


@pytest.mark.parametrize(
    ("activation", "weight", "expected"),
    [
        ({}, {}, {}),
        ({"calibration": "mse"}, {"weight_range": "learned"}, {}),
        (
            {"percentile": 99.0},
            {"percentile": 99.0},
            {"calibration": "percentile", "percentile": 99.0, "weight_range": "percentile"},
        ),
        ({}, {"weight_range": "mse"}, {"weight_range": "mse"}),
        (
            {"percentile": 99.0},
            {},
            {
                "target_settings": {
                    "_input_0": below(calibration="percentile", percentile=99.0),
                    "weight": below(),
                }
            },
        ),
        (
            {"percentile": 99.9},
            {"percentile": 100.0},
            {
                "target_settings": {
                    "_input_0": below(calibration="percentile", percentile=99.9),
                    "weight": below(percentile=100.0, weight_range="percentile"),
                }
            },
        ),
        ({"limit_levels": False}, {"limit_levels": False}, {"limit_levels": False}),
    ],
)
def test_an_entry_says_what_leaving_out_would_change(
    ddtb: Problem, activation: Options, weight: Options, expected: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = block_with(ddtb, activation, weight, monkeypatch)
    entry = next(entry for entry in block["config_list"] if entry["op_names"] == [MODULE])
    assert entry == {"op_names": [MODULE], "target_names": ["_input_0", "weight"], **below(), **expected}


def test_training_builds_the_quantizers_that_were_measured(ddtb: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Percentile 99 is DDTB's default number and not its default start: it was dropped, and trained as mse."""
    block = block_with(ddtb, {"percentile": 99.0}, {"percentile": 99.0}, monkeypatch)
    conv = QuantizedNetwork(NETWORK, block).get_submodule(MODULE)
    found = conv.input_quantizer, conv.weight_quantizer
    assert [quantizer.percentile for quantizer in found] == [99.0, 99.0]
    assert (found[0].calibration, found[1].weight_range) == ("percentile", "percentile")


def test_a_block_that_means_something_else_is_not_written(ddtb: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(module: str, targets: Options, quantizer: str) -> Options:
        return {"op_names": [module], "target_names": sorted(targets), "quant_dtype": "int4"}

    monkeypatch.setattr(block_module, "_entry", forgetful)
    block_with(ddtb, {}, {}, monkeypatch)
    with pytest.raises(OptionError) as error:
        block_with(ddtb, {"percentile": 99.0}, {}, monkeypatch)
    assert str(error.value) == "the config_list that was made does not mean what was measured; please report this"


def test_a_draft_of_the_block_is_checked_before_anything_is_measured(
    crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key of the block that the entries do not replace was refused after all measurements."""
    options = options_for(crops)
    options["quantization"]["weight_range"] = "mse"
    monkeypatch.setattr(block_module, "REPLACED", ("bits", "config_list"))
    with pytest.raises(OptionError) as error:
        problem_from(options, widths=(8, 4), count=1, size=16)
    assert str(error.value) == (
        "quantization: weight_range: it has no effect beside config_list; give it in target_settings there"
    )
