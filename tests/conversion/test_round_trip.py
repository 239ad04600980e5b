"""Both ways: official -> ours -> official has the same keys, shapes and values, ours -> official -> ours too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import QuantizedNetwork, build_float
from srq_nni.conversion import convert, convert_back
from srq_nni.quantization.gate import Gate
from srq_nni.quantization.layers import activation_quantizers, bounds_of, calibrate
from tests.conversion.converting import converted, distance, equal, loaded, photograph, saved, source_of
from tests.conversion.released import Released
from tests.conversion.states import released

ARCHS = ("edsr", "rdn", "srresnet")
TINY = {"num_feat": 8, "num_block": 2, "upscale": 2}
NETWORKS: list[dict[str, Any]] = [
    {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, **TINY},
    {"type": "RDN", **TINY, "num_layer": 3, "num_grow_ch": 4},
    {"type": "SRResNet", **TINY},
]


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def there_and_back(network: Released, folder: Path) -> dict[str, Any]:
    done = converted(network, folder, img_range=255)
    return read(convert_back(done.path, folder / "back.pth.tar", source_of(network)).path)


@pytest.mark.parametrize(("method", "gated"), [(None, False), ("pams", False), ("ddtb", False), ("ddtb", True)])
@pytest.mark.parametrize("arch", ARCHS)
def test_an_official_file_comes_back_as_it_was(tmp_path: Path, arch: str, method: str | None, gated: bool) -> None:
    network = released(arch, method, photograph(), gated=gated)
    assert equal(there_and_back(network, tmp_path)["state_dict"], network.state)


@pytest.mark.parametrize("style", ["flat", "module.", "one name", "no biases", "no dead quantizers", "old norm"])
def test_other_styles_come_back_as_they_were(tmp_path: Path, style: str) -> None:
    arch = {"no dead quantizers": "rdn", "old norm": "srresnet"}.get(style, "edsr")
    network = released(arch, "ddtb", photograph(), gated=True)
    dropped = {
        "one name": lambda key: ".body.2." in key,
        "no biases": lambda key: key.endswith(".bias") and key.startswith(("head.", "body.")) and "atten" not in key,
        "no dead quantizers": lambda key: ".convs.0.act." in key,
        "old norm": lambda key: key.endswith(".num_batches_tracked"),
    }.get(style, lambda key: False)
    network.state = {key: value for key, value in network.state.items() if not dropped(key)}
    path = saved(network, tmp_path / "official.pt", wrapped=style != "flat", prefix="module." * (style == "module."))
    done = convert(path, tmp_path / "ours.pth", "ddtb", bits=4)
    assert distance(loaded(done), network, photograph()) < 1e-3
    back = read(convert_back(done.path, tmp_path / "back.pt", "ddtb").path)
    assert equal(back if style == "flat" else back["state_dict"], network.state)


def test_lower_case_names_of_rdn_come_back(tmp_path: Path) -> None:
    network = released("rdn", None, photograph(), growth=8, scale=4)
    names = [("SFENet", "sfe"), ("RDBs", "rdbs"), ("convs", "layers"), ("conv.0", "conv"), ("LFF", "lff")]
    names += [("GFF", "gff"), ("UPNet.4", "output"), ("UPNet", "upscale")]
    state = {}
    for key, value in network.state.items():
        for old, new in names:
            key = key.replace(old, new)
        state[key] = value
    assert {"sfe1.weight", "rdbs.1.layers.2.conv.bias", "gff.0.weight", "upscale.2.weight", "output.bias"} <= set(state)
    path = saved(Released("rdn", None, 4, state), tmp_path / "official.pt", wrapped=False)
    done = convert(path, tmp_path / "ours.pth", "edsr-pytorch", img_range=255)
    assert distance(loaded(done), network, photograph()) < 1e-3
    assert equal(read(convert_back(done.path, tmp_path / "back.pt", "edsr-pytorch").path), state)


def student(network: dict[str, Any], folder: Path, **block: Any) -> Path:
    """Write a student of our pipeline, calibrated, with a gate on every second quantizer of DDTB and odd statistics."""
    quantization = {"bits": 4, "wiring": "official", **block}
    model = QuantizedNetwork(network, quantization)
    calibrate(model, [photograph() / 255])
    for index, (_, quantizer) in enumerate(activation_quantizers(model)):
        if block["quantizer"] == "ddtb" and index % 2:
            quantizer.add_gate(Gate(int(quantizer.channels)))
            quantizer.apply_gate(True)
    for bound in bounds_of(model):
        if bound.ndim == 0:  # the factor of a weight's step
            bound.data.fill_(0.3)
    path = folder / "net_g.pth"
    metadata = checkpoint.metadata_of(network, quantization)
    checkpoint.save({"params": model.state_dict(), "srq": metadata}, path)
    return path


@pytest.mark.parametrize("block", [{}, {"profile": "official"}, {"weight_range": "mse"}], ids=str)
@pytest.mark.parametrize("method", ["pams", "ddtb"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network["type"])
def test_a_student_of_ours_comes_back_with_the_same_bits(
    tmp_path: Path, network: dict[str, Any], method: str, block: dict[str, str]
) -> None:
    path = student(network, tmp_path, quantizer=method, **block)
    official = convert_back(path, tmp_path / "official.pth.tar", method)
    again = convert(official.path, tmp_path / "again.pth", method)
    assert equal(read(again.path)["params"], read(path)["params"])
    assert read(again.path)["srq"] == read(path)["srq"]
    changes = [note.split(":")[0] for note in official.notes]
    of_method = {"pams": ["weight_range"], "ddtb": ["limit_levels", "weight_range", "gate_statistics"]}[method]
    assert changes == ([] if "profile" in block else of_method)


@pytest.mark.parametrize("method", ["pams", "ddtb"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network["type"])
def test_a_student_of_ours_runs_in_the_released_code(tmp_path: Path, network: dict[str, Any], method: str) -> None:
    path = student(network, tmp_path, quantizer=method, profile="official")
    state = read(convert_back(path, tmp_path / "official.pth.tar", method).path)["state_dict"]
    template = released(
        network["type"].lower(), method, photograph(), **{"duplicates": True} if len(network) > 6 else {}
    )
    shapes = {key: value.numel() for key, value in template.state.items() if ".atten_c.1." not in key}
    assert {key: value.numel() for key, value in state.items() if ".atten_c.1." not in key} == shapes
    assert all(value.shape == (1,) for key, value in state.items() if key.endswith(("max_val", "min_val")))  # as built
    theirs = Released(network["type"].lower(), method, 4, state)
    with torch.no_grad():
        difference = checkpoint.load(path)(photograph() / 255) * 255 - theirs(photograph())
    assert difference.abs().max() < 1e-3


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network["type"])
def test_a_float_network_comes_back_with_the_same_bits(tmp_path: Path, network: dict[str, Any]) -> None:
    path, target = tmp_path / "float.pth", "ddtb" if network["type"] == "SRResNet" else "edsr-pytorch"
    torch.save({"params": build_float(network).state_dict()}, path)
    mean = {"img_range": 255.0, "rgb_mean": (0.4488, 0.4371, 0.4040)} if network["type"] == "EDSR" else {}
    official = convert_back(path, tmp_path / "official.pt", target, **mean)
    again = convert(official.path, tmp_path / "again.pth", target, img_range=255)
    assert equal(read(again.path)["params"], read(path)["params"])
    assert {**again.network, **network} == again.network


def test_the_average_is_what_goes_back(tmp_path: Path) -> None:
    path = student(NETWORKS[0], tmp_path, quantizer="pams")
    content = read(path)
    content["params_ema"] = {key: value.clone() for key, value in content["params"].items()}
    content["params_ema"]["conv_last.bias"] += 1
    torch.save(content, path)
    state = read(convert_back(path, tmp_path / "official.pt", "pams").path)["state_dict"]
    assert torch.equal(state["tail.1.bias"], content["params_ema"]["conv_last.bias"])
