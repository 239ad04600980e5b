"""Option files for BasicSR's stock models: what a search writes for them trains, with a ``QuantSRModel``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from srq_nni.cli.main import main
from srq_nni.models.options import read_options
from srq_nni.models.preflight import check_options
from tests.search.conftest import NETWORK, options_for
from tests.sr_data import write_yaml

SEARCH = "search -opt o.yml --max-size 0.25 --bits 8 3 --count 1 --size 12 -o found"


def named_options(crops: Path, quantizer: str, model_type: str) -> dict[str, Any]:
    """Return the options of a quantized network by its name, without a quantization block."""
    options = options_for(crops, quantizer) | {"model_type": model_type}
    block = options.pop("quantization")
    kept = {"bits": block["bits"], "calibration_iters": block["calibration_iters"]}
    options["network_g"] |= {"type": f"{quantizer.upper()}_EDSR", **kept}
    return options


def written_for(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    write_yaml(folder / "o.yml", options)
    main(SEARCH.split())
    return read_options(folder / "found" / "train.yml")


@pytest.mark.parametrize("quantizer", ["pams", "ddtb"])
def test_a_network_by_its_name_is_written_as_two_blocks(work_folder: Path, crops: Path, quantizer: str) -> None:
    options = named_options(crops, quantizer, "SRModel")
    assert check_options(options, is_train=True) == [], "the file itself trains"
    written = written_for(options, work_folder)
    assert check_options(written, is_train=True) == []
    assert (written["model_type"], written["network_g"]) == ("QuantSRModel", NETWORK)
    block = written.pop("quantization")
    assert (block["quantizer"], block["calibration_iters"], len(block["config_list"])) == (quantizer, 1, 10)
    assert any("dynamic_ratio" in str(entry) for entry in block["config_list"]) == (quantizer == "ddtb")
    changed = {"model_type": "SRModel", "network_g": options["network_g"]}
    assert written | changed == options, "all else stays"


def test_another_stock_model_becomes_the_base_model(work_folder: Path, crops: Path) -> None:
    written = written_for(named_options(crops, "pams", "ESRGANModel"), work_folder)
    assert (written["model_type"], written["base_model"]) == ("QuantSRModel", "ESRGANModel")


def test_a_block_beside_the_stock_model_is_written_with_a_model_that_reads_it(work_folder: Path, crops: Path) -> None:
    written = written_for(options_for(crops) | {"model_type": "SRModel"}, work_folder)
    assert check_options(written, is_train=True) == []
    assert written["model_type"] == "QuantSRModel" and "base_model" not in written
