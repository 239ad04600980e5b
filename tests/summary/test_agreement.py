"""One network, three doors: option file, checkpoint and ONNX file say the same of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import QuantizedNetwork
from srq_nni.compression.phases import enter_phase, start_bounds_and_gates
from srq_nni.packed import pack
from srq_nni.quantization.layers import calibrate
from srq_nni.speedup import export_onnx
from srq_nni.summary import Summary, summarize_checkpoint, summarize_network, summarize_onnx, summarize_options
from srq_nni.summary.network import FLOAT_WEIGHT
from tests.speedup.networks import photo
from tests.sr_data import write_yaml

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2}
MIXED = [
    {"op_names": ["body.0.conv1"], "quant_dtype": "int2"},
    {"op_names": ["body.0.conv2"], "quant_dtype": "int8"},
    {"op_names": ["body.1.conv1"], "quant_dtype": "int5"},
    {"op_names": ["conv_last"], "quant_dtype": "int6", "target_names": ["weight"]},
]
BLOCKS: dict[str, dict[str, Any]] = {
    "pams": {"quantizer": "pams", "bits": 4},
    "deploy": {"quantizer": "pams", "bits": {"weight": 3, "activation": 5}, "wiring": "deploy"},
    "ddtb": {"quantizer": "ddtb", "bits": 3, "dynamic_ratio": 0},
    "midrise": {"quantizer": "ddtb", "bits": 3, "dynamic_ratio": 0, "weight_range": "learned_midrise"},
    "midrise of pams": {"quantizer": "pams", "bits": 3, "weight_range": "learned_midrise"},
    "mixed": {"quantizer": "pams", "config_list": MIXED},
    "gates": {"quantizer": "ddtb", "bits": 4, "dynamic_ratio": 0.5},
}
ENGINE = {
    "pams": "openvino",
    "deploy": "onnxruntime",
    "ddtb": "tensorrt",
    "midrise": "tensorrt",
    "midrise of pams": "openvino",
    "mixed": "onnxruntime",
    "gates": "openvino",
}


def trained(block: dict[str, Any], folder: Path) -> str:
    """Save a network with bounds from a photograph, and the gates that training would have chosen."""
    torch.manual_seed(0)
    network = QuantizedNetwork(EDSR, block)
    calibrate(network, [photo(16), photo(16, 100)])
    if block.get("dynamic_ratio"):
        start_bounds_and_gates(network, block["dynamic_ratio"])
        enter_phase(network, "final")
    path = folder / "net_g_latest.pth"
    content = {"params": network.state_dict(), checkpoint.METADATA_KEY: checkpoint.metadata_of(EDSR, block)}
    checkpoint.save(content, path)
    return str(path)


def option_file(block: dict[str, Any], folder: Path) -> str:
    """Write an option file whose weights and images do not exist."""
    path = {"pretrain_network_g": "nowhere/EDSR.pth"}
    return write_yaml(folder / "train.yml", {"name": "x", "network_g": EDSR, "quantization": block, "path": path})


def numbers(summary: Summary) -> tuple[Any, ...]:
    """Return what all three must agree in."""
    rows = [replace(row, gate="", engines={}) for row in summary.rows]
    totals = (summary.parameters, summary.macs, summary.bops, summary.size, summary.ratio, summary.coverage)
    return (rows, totals, summary.scale, summary.method)


@pytest.mark.parametrize("case", BLOCKS)
def test_the_three_agree(case: str, tmp_path: Path) -> None:
    block, engine = BLOCKS[case], ENGINE[case]
    from_options = summarize_options(option_file(block, tmp_path))
    path = trained(block, tmp_path)
    from_checkpoint = summarize_checkpoint(path)
    export_onnx(path, tmp_path / "m.onnx", engine)
    from_onnx = summarize_onnx(tmp_path / "m.onnx")

    pack(path, tmp_path / "net.safetensors")
    from_packed = summarize_checkpoint(tmp_path / "net.safetensors")

    assert numbers(from_options) == numbers(from_checkpoint) == numbers(from_onnx)
    assert replace(from_packed, subject="net_g_latest.pth") == from_checkpoint
    assert (
        from_options.wiring
        == from_checkpoint.wiring
        == ("config_list" if case == "mixed" else block.get("wiring", "paper"))
    )
    for row, written in zip(from_checkpoint.rows, from_onnx.rows, strict=True):
        assert row.engines[engine].runs_in_integers == written.engines[engine].runs_in_integers
    if case != "gates":
        assert from_options.rows == from_checkpoint.rows
        assert from_options.file_bytes == from_checkpoint.file_bytes
        return
    assert (from_options.gates, from_options.gate_candidates) == (2, 4)
    assert (from_checkpoint.gates, from_checkpoint.gate_candidates) == (from_onnx.gates, 0) == (2, 0)
    assert [row.gate for row in from_checkpoint.rows] == [row.gate for row in from_onnx.rows]
    assert {row.gate for row in from_options.rows} == {"", "maybe"}
    assert from_checkpoint.gate_parameters == from_onnx.gate_parameters == 2 * (8 * 32 + 64 + 64)


def test_bits_and_counts_of_mixed_layers(tmp_path: Path) -> None:
    rows = {row.name: row for row in summarize_options(option_file(BLOCKS["mixed"], tmp_path)).rows}
    assert [rows[f"body.0.conv{i}"].weight_bits for i in (1, 2)] == [2, 8]
    assert (rows["conv_last"].weight_bits, rows["conv_last"].activation_bits) == (6, None)
    assert rows["conv_last"].engines["openvino"].reason == "its input is not quantized"
    assert rows["conv_first"].engines["openvino"].reason == FLOAT_WEIGHT
    assert (rows["conv_last"].weights, rows["conv_last"].biases) == (8 * 3 * 9, 3)
    assert rows["conv_last"].macs == 8 * 3 * 9 * 1280 * 720
    assert rows["conv_first"].macs == 3 * 8 * 9 * 640 * 360


def test_a_gate_that_changes_the_verdict_is_said(tmp_path: Path) -> None:
    text = str(summarize_options(option_file(BLOCKS["gates"], tmp_path)))
    assert "gates       2 of 4, chosen while training" in text
    assert "int8* b" in text and "*           without a gate; with one it changes sides" in text
    assert "note: nowhere/EDSR.pth does not exist yet; nothing above needs it, training will" in text


def test_a_float_network_has_a_table_too(tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "o.yml", {"model_type": "SRModel", "network_g": EDSR})
    text = str(summarize_options(path))
    assert text.startswith("o.yml: EDSR x2, float\n")
    assert "file size   0.0" in text and "published" not in text and "a  its weight is not quantized" in text


def test_an_alias_is_summarized_like_its_two_blocks(tmp_path: Path) -> None:
    alias = summarize_options(write_yaml(tmp_path / "a.yml", {"network_g": {**EDSR, "type": "PAMS_EDSR", "bits": 4}}))
    assert numbers(alias) == numbers(summarize_options(option_file(BLOCKS["pams"], tmp_path)))


def test_weights_that_exist_are_checked_and_quantized_ones_count_as_trained(tmp_path: Path) -> None:
    path = trained(BLOCKS["gates"], tmp_path)
    options = {"network_g": EDSR, "quantization": BLOCKS["gates"], "path": {"pretrain_network_g": path}}
    summary = summarize_options(write_yaml(tmp_path / "o.yml", options))
    assert (summary.gates, summary.gate_candidates, summary.notes) == (2, 0, ())
    options["network_g"] = {**EDSR, "num_feat": 16}
    with pytest.raises(checkpoint.CheckpointError, match="does not fit the network"):
        summarize_options(write_yaml(tmp_path / "o.yml", options))


def test_a_summary_changes_neither_the_network_nor_the_random_state(tmp_path: Path) -> None:
    network = QuantizedNetwork(EDSR, BLOCKS["ddtb"])
    before = {key: value.clone() for key, value in network.state_dict().items()}
    random = torch.random.get_rng_state()
    summarize_network(network, engines=("openvino",), gate_ratio=0.5)
    summarize_options(option_file(BLOCKS["pams"], tmp_path))
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.training


def test_repr_of_a_network_names_bits_and_bounds(tmp_path: Path) -> None:
    network = checkpoint.load(trained(BLOCKS["ddtb"], tmp_path))
    text = repr(network)
    assert text.count("DDTBActivation(") == 4 and text.count("DDTBWeight(bits=3, learned)") == 4
    upper = network.get_submodule("body.0.conv1.input_quantizer").get_parameter("upper").item()
    assert f"upper={upper:.4g}" in text
    with torch.device("meta"):
        assert "bits=4, alpha=?" in repr(QuantizedNetwork(EDSR, BLOCKS["pams"]))
