"""Where grids start: a method's default is a candidate, and what is measured is what training starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import QuantizedNetwork
from srq_nni.compression.sites import Site
from srq_nni.quantization.layers import calibrate
from srq_nni.quantization.methods import METHODS, get_method
from srq_nni.quantization.targets import WEIGHT
from srq_nni.search.bank import ACTIVATION_STARTS, WEIGHT_STARTS
from srq_nni.search.block import quantization_block
from srq_nni.search.setup import Problem, problem_from
from tests.search.conftest import NETWORK, WEIGHTS, options_for


@pytest.fixture(scope="module", params=METHODS)
def problem(request: pytest.FixtureRequest, crops: Path) -> Problem:
    problem = problem_from(options_for(crops, request.param), widths=(8, 4, 2), count=2, size=24)
    problem.measurer.prepare()
    return problem


def starts_of(problem: Problem, bits: int, *, weights: bool) -> set[str]:
    """Return the starts that sites have at ``bits``."""
    bank = problem.measurer.bank
    sites = [site for site in bank.sites if (site.target == WEIGHT) is weights]
    key = "weight_range" if weights else "calibration"
    return {bank.options(site, bits)[key] for site in sites}


@pytest.mark.parametrize("method", METHODS)
def test_the_default_of_the_method_comes_first(method: str) -> None:
    of_method = get_method(method)
    assert ACTIVATION_STARTS[method][0] == {"calibration": of_method.activation_options["calibration"]}
    assert WEIGHT_STARTS[method][0] == {"weight_range": of_method.weight_options["weight_range"]}


def test_few_bits_start_with_the_least_squared_error(problem: Problem) -> None:
    """Of activations and weights, of which a percentile clips too much or too little."""
    assert "mse" in starts_of(problem, 2, weights=False)
    assert "learned" in starts_of(problem, 2, weights=True)


def test_no_start_has_a_smaller_error_than_the_one_taken(problem: Problem) -> None:
    """By another computation: the quantizers of each start, calibrated on the float activations themselves."""
    method, bank = get_method(problem.options.quantizer), problem.measurer.bank
    module = "body.2.conv2"
    weight = bank.network.get_submodule(module).weight.detach()
    errors = {
        str(start): float((method.weight(4, **start).quantize(weight).detach() - weight).square().mean())
        for start in WEIGHT_STARTS[method.name]
    }
    assert str(bank.options(Site(module, WEIGHT, 4), 4)) == min(errors, key=lambda start: errors[start])

    seen: list[torch.Tensor] = []
    handle = bank.network.get_submodule(module).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for pair in problem.images.pairs:
            bank.network(pair.low)
    handle.remove()
    errors = {}
    for start in ACTIVATION_STARTS[method.name]:
        quantizer = method.activation(4, **start).eval()
        for x in seen:
            quantizer.observe(x)
        quantizer.set_bounds_from_statistics()
        errors[str(start)] = sum(float((quantizer.quantize(x) - x).detach().square().mean()) for x in seen)
    assert str(bank.options(Site(module, "_input_0", 4), 4)) == min(errors, key=lambda start: errors[start])


def check_written_network(problem: Problem, bits: int) -> None:
    """Check, through the door that training takes and calibrated on the same images, that outputs are equal."""
    assignment = {unit.name: bits for unit in problem.units}
    network = QuantizedNetwork(NETWORK, quantization_block(problem, assignment))
    checkpoint.load_weights(network, WEIGHTS)
    calibrate(network, [pair.low for pair in problem.images.pairs])
    with problem.measurer.bank.using(problem.sites(assignment)) as measured, torch.no_grad():
        for pair in problem.images.pairs:
            torch.testing.assert_close(network(pair.low), measured(pair.low), rtol=0, atol=0)


@pytest.mark.parametrize("bits", [4, 2])
def test_the_written_network_computes_what_was_measured(problem: Problem, bits: int) -> None:
    check_written_network(problem, bits)


@pytest.mark.parametrize(
    "block",
    [
        {"quantizer": "pams", "bits": 4, "profile": "official", "student": "float"},
        {"quantizer": "ddtb", "bits": 4, "profile": "official", "calibration": "percentile"},
    ],
)
def test_what_repeats_the_released_code_is_measured_in_its_order(crops: Path, block: dict[str, Any]) -> None:
    problem = problem_from(options_for(crops) | {"quantization": block}, widths=(8, 4), count=1, size=16)
    problem.measurer.prepare()
    check_written_network(problem, 4)


def quantizers_of(block: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every quantizer that training inserts, with the settings it has."""
    method = get_method(block["quantizer"])
    found = {}
    for name, module in QuantizedNetwork(NETWORK, block).named_modules():
        if name.endswith("_quantizer"):
            names = method.weight_options if name.endswith("weight_quantizer") else method.activation_options
            found[name] = {"bits": module.bits} | {key: getattr(module, key) for key in names}
    return found


@pytest.mark.parametrize(
    ("quantizer", "settings", "settled"),
    [
        ("pams", {}, ""),
        ("pams", {"weight_range": "mse"}, "weight"),
        ("pams", {"weight_range": "max", "calibration": "max"}, "weight _input_0"),
        ("pams", {"calibration": "mse"}, "_input_0"),
        ("pams", {"profile": "official", "student": "float", "wiring": "paper"}, "weight _input_0"),
        ("ddtb", {"weight_range": "mse", "static_iters": 3}, "weight"),
        ("ddtb", {"weight_range": "percentile"}, "weight"),
        ("ddtb", {"percentile": 99.5}, "weight _input_0"),
        ("ddtb", {"calibration": "percentile"}, "_input_0"),
        ("ddtb", {"calibration": "mae"}, "_input_0"),
        ("ddtb", {"calibration": "mse", "percentile": 99.5}, "weight _input_0"),
        ("ddtb", {"limit_levels": False, "gate_statistics": "official", "gate_gradient": "official"}, ""),
        ("ddtb", {"profile": "official", "calibration": "mse", "wiring": "paper"}, "weight _input_0"),
    ],
)
def test_what_the_user_wrote_is_kept(crops: Path, quantizer: str, settings: dict[str, Any], settled: str) -> None:
    """A start that the file names is the only candidate of its tensors; all else of the block is as it was."""
    block = {"quantizer": quantizer, "bits": 4, **settings}
    problem = problem_from(options_for(crops) | {"quantization": block}, widths=(8, 4), count=1, size=16)
    written = quantization_block(problem, {unit.name: 4 for unit in problem.units})
    assert quantizers_of(written) == quantizers_of(block)
    sites = {(site.module, site.target) for site in problem.measurer.bank.sites if site.target in settled.split()}
    assert problem.measurer.bank.settled == sites


def test_an_entry_settles_its_own_site_alone(crops: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"op_names": ["body.0.conv1"], "quant_dtype": "int4", "weight_range": "mse"},
        {"op_names": ["body.1.conv1"], "target_settings": {"_input_0": {"quant_dtype": "int4", "percentile": 99.5}}},
        {"op_names": ["body.1.conv2"], "quant_dtype": "int4"},
    ]
    block = {"quantizer": "ddtb", "config_list": entries, "dynamic_ratio": 0}
    problem = problem_from(options_for(crops) | {"quantization": block}, widths=(8, 4), count=1, size=16)
    assert problem.measurer.bank.settled == {("body.0.conv1", WEIGHT), ("body.1.conv1", "_input_0")}
