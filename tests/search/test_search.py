"""The search on real weights and photographs: within the limit by another measurement, and better than equal bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from basicsr.metrics import calculate_psnr
from basicsr.utils import tensor2img

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import QuantizedNetwork
from srq_nni.errors import OptionError
from srq_nni.models.options import read_options
from srq_nni.models.preflight import check_options
from srq_nni.quantization.layers import activation_quantizers, calibrate
from srq_nni.search import Budget, SearchResult, search_bits
from srq_nni.search.block import quantization_block
from srq_nni.search.setup import Problem, problem_from
from srq_nni.search.write import as_data, table, write_result
from srq_nni.summary import summarize_network
from tests.search.conftest import NETWORK, WEIGHTS, WIDTHS, options_for


def psnr_of(block: dict[str, Any] | None, problem: Problem) -> float:
    """Return the PSNR on Y by BasicSR's metric of a network built from a block, calibrated on the search's images."""
    network = QuantizedNetwork(NETWORK, block or {"quantizer": "pams", "bits": 8})
    checkpoint.load_weights(network, WEIGHTS)
    if block is None:
        network = problem.measurer.bank.network
    else:
        calibrate(network, [pair.low for pair in problem.images.pairs])
    values = []
    for pair in problem.images.pairs:
        with torch.no_grad():
            image = tensor2img(network.eval()(pair.low))
        values.append(calculate_psnr(image, tensor2img(pair.truth), crop_border=2, test_y_channel=True))
    return float(np.mean(values))


def block_of(result: SearchResult) -> dict[str, Any]:
    return quantization_block(result.problem, result.best.assignment, result.gates)


def intensities_in(block: dict[str, Any], problem: Problem) -> dict[tuple[str, str], float]:
    """Return the dynamic intensity of each input of a network built from a block, on the search's images."""
    network = QuantizedNetwork(NETWORK, block)
    checkpoint.load_weights(network, WEIGHTS)
    calibrate(network, [pair.low for pair in problem.images.pairs])
    found = activation_quantizers(network)
    return {(name.removesuffix(".input_quantizer"), "_input_0"): q.intensity.intensity for name, q in found}


def same_bits(result: SearchResult) -> SearchResult:
    """Return the result as if 5 bits everywhere had been chosen."""
    return replace(result, best=result.uniform[5])


def test_the_limit_holds_by_an_independent_measurement(problem: Problem, within_loss: SearchResult) -> None:
    """The block that is written, through the door that training takes, with BasicSR's own metric."""
    loss = psnr_of(None, problem) - psnr_of(block_of(within_loss), problem)
    assert loss == pytest.approx(within_loss.best.loss, abs=2e-3)
    assert loss <= 0.15
    assert within_loss.float_psnr == pytest.approx(psnr_of(None, problem), abs=2e-3)


def test_it_costs_less_than_the_equal_bits_that_keep_the_limit(within_loss: SearchResult) -> None:
    keeping = [point for point in within_loss.uniform.values() if point.loss <= 0.15]
    assert keeping and within_loss.best.summary.bops < min(point.summary.bops for point in keeping)
    assert len(set(within_loss.best.assignment.values())) > 1


def test_it_loses_less_than_equal_bits_of_the_same_size(problem: Problem, within_size: SearchResult) -> None:
    same = within_size.uniform[5]
    assert within_size.best.summary.file_bytes <= same.summary.file_bytes
    assert within_size.best.loss < same.loss - 0.005
    independent = psnr_of(block_of(same_bits(within_size)), problem)
    assert psnr_of(block_of(within_size), problem) > independent + 0.005


def test_costs_are_those_of_the_summary_of_the_network(problem: Problem, within_size: SearchResult) -> None:
    network = QuantizedNetwork(NETWORK, block_of(within_size))
    summary = summarize_network(network, engines=())
    assert summary.bops == within_size.best.summary.bops
    assert summary.file_bytes == within_size.best.summary.file_bytes


def test_a_layer_alone_loses_more_at_fewer_bits(within_loss: SearchResult) -> None:
    """Differences of a few thousandths of a dB, between 8 and 6 bits, may go either way on a few images."""
    assert (within_loss.alone[:, 0] < within_loss.alone[:, 3]).all()
    assert (np.diff(within_loss.alone.sum(0)) > 0).all()


def test_nothing_is_measured_twice(problem: Problem, within_loss: SearchResult, crops: Path) -> None:
    again = problem_from(options_for(crops), widths=WIDTHS, count=6, size=40, cache=problem.measurer.cache)
    result = search_bits(again, Budget("loss", 0.15))
    assert again.measurer.measured == 0
    assert result.best == within_loss.best


def test_other_images_are_measured_anew(problem: Problem, within_loss: SearchResult, crops: Path) -> None:
    others = problem_from(options_for(crops), widths=WIDTHS, count=5, size=40, cache=problem.measurer.cache)
    assert others.measurer.results == {}
    damaged = problem.measurer.cache
    assert damaged is not None
    content = damaged.read_bytes()
    try:
        damaged.write_text("{}")
        assert problem_from(options_for(crops), widths=WIDTHS, count=6, size=40, cache=damaged).measurer.results == {}
    finally:
        damaged.write_bytes(content)


def test_what_is_written_trains_as_it_is(within_loss: SearchResult, crops: Path, tmp_path: Path) -> None:
    options = options_for(crops)
    text = "# my comment\n" + yaml.safe_dump(options, sort_keys=False)
    write_result(within_loss, tmp_path, text, options, "srq search -opt small.yml --max-loss 0.15")
    written = (tmp_path / "train.yml").read_text()
    assert written.startswith("# my comment\n") and "# alone it loses 0." in written
    read = read_options(tmp_path / "train.yml")
    assert {**read, "quantization": None} == {**options, "quantization": None}
    assert read["quantization"] == yaml.safe_load((tmp_path / "quantization.yml").read_text())["quantization"]
    check_options(read, is_train=True)
    data = json.loads((tmp_path / "bits.json").read_text())
    assert data == json.loads(json.dumps(as_data(within_loss))) and data["best"]["bits"] == within_loss.best.assignment
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_names_the_images_and_the_choice(within_loss: SearchResult) -> None:
    text = table(within_loss)
    assert "measured on 6 images of 'photos', the middle 40x40 of each: " in text
    for unit, bits in within_loss.best.assignment.items():
        line = next(line for line in text.splitlines() if line.startswith(f"{unit} "))
        assert line.endswith(f"  {bits}")
    assert "8 bits everywhere" in text and "chosen, at most 0.15 dB of loss" in text


def test_ddtb_gets_gates_where_activations_move_most(crops: Path) -> None:
    options = options_for(crops, "ddtb")
    options["quantization"] = {"quantizer": "ddtb", "bits": 4, "dynamic_ratio": 0.4, "static_iters": 1}
    problem = problem_from(options, widths=(6, 3), count=2, size=16)
    result = search_bits(problem, Budget("size", 0.25), checks=2)
    block = block_of(result)
    intensities = intensities_in(block, problem)
    assert len(result.gates) == 4
    assert min(intensities[key] for key in result.gates) >= max(
        value for key, value in intensities.items() if key not in result.gates
    )
    gated = [entry["op_names"][0] for entry in block["config_list"] if "dynamic_ratio" in str(entry)]
    assert block["dynamic_ratio"] == 0 and sorted(gated) == sorted(module for module, _ in result.gates)
    assert summarize_network(QuantizedNetwork(NETWORK, block), engines=()).file_bytes == result.best.summary.file_bytes


def test_entries_keep_their_own_shares_of_gates(crops: Path) -> None:
    """As in a file that a search wrote: its gates were lost when it was searched again."""
    entries = [{"op_names_re": [r"body\.[0-3]\.conv[12]$"], "quant_dtype": "int4"}]
    entries += [{"op_names": ["body.4.conv1", "body.4.conv2"], "quant_dtype": "int4", "dynamic_ratio": 0.5}]
    options = options_for(crops, "ddtb")
    options["quantization"] = {"quantizer": "ddtb", "config_list": entries, "dynamic_ratio": 0, "static_iters": 1}
    problem = problem_from(options, widths=(6, 3), count=2, size=16)
    result = search_bits(problem, Budget("size", 0.25), checks=0)
    assert result.gates == (("body.4.conv2", "_input_0"),)
    intensities = intensities_in(block_of(result), problem)
    assert intensities["body.4.conv2", "_input_0"] > intensities["body.4.conv1", "_input_0"]
    again = problem_from({**options, "quantization": block_of(result)}, widths=(6, 3), count=2, size=16)
    assert search_bits(again, Budget("size", 0.25), checks=0).gates == result.gates


def test_deploy_gives_a_block_and_its_first_convolution_the_same_bits(crops: Path) -> None:
    options = options_for(crops)
    options["quantization"]["wiring"] = "deploy"
    problem = problem_from(options, widths=(6, 3), count=1, size=16)
    unit = next(unit for unit in problem.units if unit.name == "body.0.conv1")
    assert [(site.module, site.target) for site in unit.sites] == [("body.0.conv1", "weight"), ("body.0", "_input_0")]
    assert [(site.module, site.bits) for site in problem.fixed] == [(f"body.{i}.branch", 4) for i in range(5)]


def test_skips_with_bits_of_their_own_keep_them(crops: Path) -> None:
    options = options_for(crops)
    options["quantization"] |= {"wiring": "deploy", "skip": 8}
    problem = problem_from(options, widths=(6, 3), count=1, size=16)
    unit = next(unit for unit in problem.units if unit.name == "body.0.conv1")
    assert [(site.module, site.target) for site in unit.sites] == [
        ("body.0.conv1", "weight"),
        ("body.0.conv1", "_input_0"),
    ]
    assert {site.module: site.bits for site in problem.fixed} == {
        f"body.{i}{place}": 8 for i in range(5) for place in ("", ".branch")
    }


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        (Budget("size", 0.1), "--max-size 0.1: 4 bits everywhere take 0.239 MB; give at least that, or quantize more"),
        (Budget("bops", 1), "--max-bops 1: 4 bits everywhere take 12.2"),
        (Budget("loss", 1e-6), "--max-loss 1e-06: 8 bits everywhere lose 0.0"),
    ],
)
def test_an_impossible_limit_says_what_is_possible(
    problem: Problem, within_loss: SearchResult, budget: Budget, sentence: str
) -> None:
    with pytest.raises(OptionError) as error:
        search_bits(problem, budget)
    assert str(error.value).startswith(sentence)
