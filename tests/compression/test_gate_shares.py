"""Entries of a config_list that say which layers get a gate, the same ones through either door."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import srq_nni
from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import QuantizedNetwork, build_float
from srq_nni.compression.phases import ddtb_quantizers, gate_candidates, start_bounds_and_gates
from srq_nni.errors import OptionError
from srq_nni.quantization.layers import set_mode

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 3, "upscale": 2}


def chosen(entries: list[dict[str, Any]], ratio: float) -> list[str]:
    network = QuantizedNetwork(EDSR, {"quantizer": "ddtb", "config_list": entries})
    set_mode(network, "observe")
    with torch.no_grad():
        for _ in range(2):
            network(torch.rand(1, 3, 8, 8))
    return sorted(name.removesuffix(".input_quantizer") for name in start_bounds_and_gates(network, ratio))


def test_entries_name_the_gated_layers() -> None:
    entries = [
        {"op_names_re": [r"body\.\d\.conv1$"], "quant_dtype": "int4"},
        {"op_names": ["body.2.conv2"], "quant_dtype": "int4", "dynamic_ratio": 1},
    ]
    assert chosen(entries, 0.0) == ["body.2.conv2"]
    assert chosen(entries, 1.0) == ["body.0.conv1", "body.1.conv1", "body.2.conv1", "body.2.conv2"]


def test_a_share_of_an_entry_counts_within_it() -> None:
    entries = [
        {"op_names_re": [r"body\.\d\.conv1$"], "quant_dtype": "int4", "dynamic_ratio": 0.4},
        {"op_names_re": [r"body\.\d\.conv2$"], "quant_dtype": "int4"},
    ]
    names = chosen(entries, 0.7)
    assert sum(name.endswith("conv1") for name in names) == 1
    assert sum(name.endswith("conv2") for name in names) == 2


def test_eight_bits_get_a_gate_only_if_an_entry_says_so() -> None:
    entries = [
        {"op_names": ["body.0.conv1"], "quant_dtype": "int8"},
        {"op_names": ["body.1.conv1"], "quant_dtype": "int8", "dynamic_ratio": 1},
        {"op_names": ["body.2.conv1"], "quant_dtype": "int4"},
    ]
    network = QuantizedNetwork(EDSR, {"quantizer": "ddtb", "config_list": entries})
    names = [name.removesuffix(".input_quantizer") for name in gate_candidates(network, 1.0)]
    assert names == ["body.1.conv1", "body.2.conv1"]


@pytest.mark.parametrize("share", [1.5, -0.1, "half", True, None])
def test_a_wrong_share_is_one_sentence(share: Any) -> None:
    entries = [{"op_names": ["body.0.conv1"], "quant_dtype": "int4", "dynamic_ratio": share}]
    with pytest.raises(OptionError) as error:
        QuantizedNetwork(EDSR, {"quantizer": "ddtb", "config_list": entries})
    sentence = f"config_list entry 0: dynamic_ratio: {share!r} is not allowed; give a share from 0 to 1"
    assert str(error.value).endswith(sentence)


def test_pams_has_no_gates() -> None:
    entries = [{"op_names": ["body.0.conv1"], "quant_dtype": "int4", "dynamic_ratio": 1}]
    with pytest.raises(OptionError, match="key 'dynamic_ratio' is not known"):
        QuantizedNetwork(EDSR, {"quantizer": "pams", "config_list": entries})


def test_a_checkpoint_may_be_loaded_with_other_shares(tmp_path: Any) -> None:
    """Which layers have gates is in the weights; the shares say only which ones training gives."""
    block = {
        "quantizer": "ddtb",
        "config_list": [{"op_names": ["body.0.conv1"], "quant_dtype": "int4", "dynamic_ratio": 1}],
    }
    path = tmp_path / "net.pth"
    network = QuantizedNetwork(EDSR, block)
    checkpoint.save({"params": network.state_dict(), "srq": checkpoint.metadata_of(EDSR, block)}, path)
    other = {"quantizer": "ddtb", "config_list": [{"op_names": ["body.0.conv1"], "quant_dtype": "int4"}]}
    assert checkpoint.load_weights(QuantizedNetwork(EDSR, other), path, quantization=other)


WIDE = {"op_names_re": [r"body\.0\.conv[12]$"], "quant_dtype": "int8"}
NARROW = {"op_names_re": [r"body\.[12]\.conv[12]$"], "quant_dtype": "int4"}
BRANCHES = {"op_names_re": [r"body\.\d$", r"body\.\d\.branch$"], "target_names": ["_input_0"], "quant_dtype": "int4"}
BODY = ["body.0.conv1", "body.0.conv2", "body.1.conv1", "body.1.conv2", "body.2.conv1", "body.2.conv2"]
BOTH_DOORS: dict[str, tuple[list[dict[str, Any]], float, list[str]]] = {
    "all with a share": ([{**WIDE, "dynamic_ratio": 1.0}, {**NARROW, "dynamic_ratio": 1.0}], 0.3, BODY),
    "8 bits without": ([WIDE, {**NARROW, "dynamic_ratio": 0.5}], 1.0, ["body.1.conv1", "body.1.conv2"]),
    "8 bits with": ([{**WIDE, "dynamic_ratio": 1.0}, NARROW], 1.0, BODY),
    "a module and its parts": (
        [{**BRANCHES, "dynamic_ratio": 0.5}, NARROW],
        0.5,
        ["body.0", "body.0.branch", "body.1.branch", "body.1.conv1", "body.1.conv2"],
    ),
}


@pytest.mark.parametrize(("entries", "ratio", "expected"), BOTH_DOORS.values(), ids=BOTH_DOORS)
def test_both_doors_choose_the_same_gates(entries: list[dict[str, Any]], ratio: float, expected: list[str]) -> None:
    """After one batch all intensities are zero, so that the order of the quantizers decides, too."""
    x = torch.rand(2, 3, 8, 8)
    torch.manual_seed(0)
    network = QuantizedNetwork(EDSR, {"quantizer": "ddtb", "config_list": entries, "dynamic_ratio": ratio})
    torch.manual_seed(0)
    options = {"calibration_iters": 1, "static_iters": 1, "dynamic_ratio": ratio}
    quantizer = srq_nni.DDTBQuantizer(build_float(EDSR), entries, **options)

    set_mode(network.eval(), "observe")
    with torch.no_grad():
        network(x)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start_bounds_and_gates(network, ratio)
    optimizer = torch.optim.SGD(quantizer.parameter_groups(lr=0.0), lr=0.0)
    for _ in range(2):
        quantizer.bound_model.train()(x).mean().backward()
        optimizer.step()

    gates = gates_of(network)
    assert sorted(gates) == expected
    own = gates_of(quantizer.bound_model)
    assert sorted(own) == expected
    assert all(torch.equal(gates[name], own[name]) for name in expected)


def gates_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the first weights of the gates, by the name of the module whose input they scale."""
    return {
        name.replace("._nni_wrapper", "").removesuffix(".input_quantizer"): quantizer.gate.reduce.weight
        for name, quantizer in ddtb_quantizers(network).items()
        if quantizer.gate is not None
    }
