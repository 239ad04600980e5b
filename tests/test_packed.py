"""Packed files: the same bits after a round trip, the size that is promised, and one sentence for a bad file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import srq_nni
from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import QuantizedNetwork, build_float
from srq_nni.cli.main import main
from srq_nni.errors import CheckpointError
from srq_nni.packed import pack
from srq_nni.quantization.layers import QuantizedLayer, bounds_of
from srq_nni.speedup import integer_simulator
from srq_nni.speedup.engine_rules import ENGINES
from srq_nni.speedup.graph import build_graph
from tests.speedup.architectures import ARCHITECTURES, quantized
from tests.speedup.networks import calibrated, photo
from tests.sr_data import NETWORK

BLOCK = {"quantizer": "pams", "bits": 2}


def message(call: Callable[[], Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def small(block: dict[str, Any] = BLOCK) -> nn.Module:
    torch.manual_seed(0)
    return calibrated(QuantizedNetwork(NETWORK, block), photo(24))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    pack(small(), tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def integers(network: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: module.weight_quantizer.grid(module.get_parameter("weight")).codes(
            module.get_parameter("weight").detach()
        )
        for name, module in network.named_modules()
        if isinstance(module, QuantizedLayer) and module.weight_quantizer is not None
    }


def version_of(path: Path) -> int:
    """Return the format of a packed file: 1 is what releases before scales of channels read."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    return int(json.loads(header["__metadata__"]["srq"])["format"])


# --- the same bits


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("weight_range", ["mse", "learned", "learned_per_channel", "learned_midrise"])
@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_codes_and_output_are_bit_identical(method: str, weight_range: str, bits: int, tmp_path: Path) -> None:
    network = small({"quantizer": method, "bits": bits, "wiring": "deploy", "weight_range": weight_range})
    for bound in bounds_of(network):
        if bound.ndim == 0:  # the factor of a weight's step
            bound.data.fill_(-0.2)
    pack(network, tmp_path / "n.safetensors")
    newer = {"learned_per_channel": 2, "learned_midrise": 3 if bits < 8 else 1}
    assert version_of(tmp_path / "n.safetensors") == newer.get(weight_range, 1)
    loaded = srq_nni.load(tmp_path / "n.safetensors")
    before, after = integers(network), integers(loaded)
    assert before.keys() == after.keys() and len(before) == 2
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        assert torch.equal(loaded(photo()), network(photo()))
        assert torch.equal(integer_simulator(loaded)(photo()), integer_simulator(network)(photo()))
    assert not loaded.training


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("method", "gated"), [("pams", False), ("ddtb", True)])
def test_every_network_with_batch_norms_gates_head_and_tail(
    arch: str, method: str, gated: bool, tmp_path: Path
) -> None:
    network = quantized(arch, method, 3, "deploy", gated=gated, head=8, tail=8)
    report = pack(network, tmp_path / "n.safetensors")
    assert set(report.bits) == ({2, 3, 8} if gated else {3, 8})  # gates are ternary
    loaded = srq_nni.load(tmp_path / "n.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(photo()), network(photo()))
    pack(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "n.safetensors").read_bytes()


@pytest.mark.parametrize("engine", list(ENGINES))
def test_exported_files_are_equal(engine: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    network = quantized("EDSR", "ddtb", 4, "paper", gated=True)
    pack(network, tmp_path / "n.safetensors")
    loaded = srq_nni.load(tmp_path / "n.safetensors")
    graphs = [build_graph(model, ENGINES[engine])[0].graph.SerializeToString() for model in (network, loaded)]
    assert graphs[0] == graphs[1]


def test_the_released_code_may_have_one_level_more(tmp_path: Path) -> None:
    network = small({"quantizer": "ddtb", "bits": 2, "profile": "official"})
    weight = network.get_parameter("body.0.conv1.weight")
    with torch.no_grad():
        weight.copy_(torch.linspace(-1, 1, weight.numel()).view_as(weight))
    assert integers(network)["body.0.conv1"].unique().numel() == 5
    pack(network, tmp_path / "n.safetensors")
    assert torch.equal(srq_nni.load(tmp_path / "n.safetensors")(photo()), network(photo()))


# --- the size


def test_a_2_bit_edsr_body_is_a_sixteenth_of_its_float_size(tmp_path: Path) -> None:
    """EDSR-baseline x4, 64 features, 16 blocks: 32 weights of 64 x 64 x 3 x 3."""
    edsr = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 64, "num_block": 16, "upscale": 4}
    network = QuantizedNetwork(edsr, BLOCK).eval()
    report = pack(network, tmp_path / "n.safetensors")
    assert report.bits == {2: 32}
    assert report.packed_float_bytes == 32 * 64 * 64 * 9 * 4
    assert report.packed_bytes * 16 == report.packed_float_bytes
    size = (tmp_path / "n.safetensors").stat().st_size
    torch.save(build_float(edsr).state_dict(), tmp_path / "float.pth")
    saved = (tmp_path / "float.pth").stat().st_size - size
    assert report.file_bytes == size
    # The whole file: the float head, tail and biases as they were, bounds, and a header below 24 KB.
    assert report.packed_float_bytes * 15 / 16 - 24_000 < saved < report.packed_float_bytes * 15 / 16 + 24_000
    assert str(report) == (
        f"{tmp_path}/n.safetensors: {size / 1e6:.2f} MB instead of 6.07 MB in float32\n"
        "packed weights: 32 at 2 bits, 0.295 MB instead of 4.72 MB (1/16.0)"
    )


def test_training_state_is_left_out(packed: Path) -> None:
    length = struct.unpack("<Q", packed.read_bytes()[:8])[0]
    header = json.loads(packed.read_bytes()[8 : 8 + length])
    names = sorted(header.keys() - {"__metadata__"})
    assert not any("statistic" in name for name in names)
    assert "body.0.conv1.input_quantizer.alpha" in names
    weight = header["body.0.conv1.weight"]
    assert (weight["dtype"], weight["shape"]) == ("U8", [8 * 8 * 9 // 4])
    stored = json.loads(header["__metadata__"]["srq"])
    assert stored["format"] == 1 and stored["network"] == NETWORK and stored["quantization"]["bits"] == 2
    assert stored["weights"]["body.0.conv1.weight"].keys() == {"bits", "scale", "minimum", "maximum", "shape"}


# --- checkpoints and commands


def test_command_packs_and_export_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    network = small({**BLOCK, "wiring": "deploy"})
    content = {"params": network.state_dict(), "srq": checkpoint.metadata_of(NETWORK, {**BLOCK, "wiring": "deploy"})}
    checkpoint.save(content, tmp_path / "n.pth")
    main(["pack", str(tmp_path / "n.pth"), "-o", str(tmp_path / "n.safetensors")])
    assert "packed weights: 2 at 2 bits, 0.000 MB instead of 0.00 MB (1/16.0)" in capsys.readouterr().out
    for source in ("n.pth", "n.safetensors"):
        main(["export", str(tmp_path / source), "-o", str(tmp_path / f"{source}.onnx")])
    assert (tmp_path / "n.pth.onnx").read_bytes() == (tmp_path / "n.safetensors.onnx").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["missing.pth", "-o", "x.safetensors"],
            "checkpoint 'missing.pth' does not exist; give the path of a .pth file",
        ),
        (
            ["float.pth", "-o", "x.safetensors"],
            "checkpoint 'float.pth' does not say which network it is; give a quantized one",
        ),
        (
            ["n.safetensors", "-o", "no/x.safetensors"],
            "the folder 'no' of 'no/x.safetensors' does not exist; create it first",
        ),
        (["n.safetensors", "-o", "."], "'.' is a folder; give the name of a file in it, such as 'model.safetensors'"),
        (["text.pth", "-o", "x.safetensors"], "checkpoint 'text.pth' cannot be read ("),
    ],
)
def test_wrong_input_to_the_command(
    arguments: list[str],
    expected: str,
    packed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(packed.parent)
    packed.rename("n.safetensors")
    torch.save({"params": build_float(NETWORK).state_dict()}, "float.pth")
    Path("text.pth").write_text("a text")
    before = sorted(packed.parent.iterdir())
    with pytest.raises(SystemExit) as ended:
        main(["pack", *arguments])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith(f"srq: error: {expected}") and error.count("\n") == 1
    assert sorted(packed.parent.iterdir()) == before


def test_a_network_that_does_not_say_how_it_is_built(tmp_path: Path) -> None:
    assert message(lambda: pack(nn.Conv2d(3, 3, 3), tmp_path / "n.safetensors")) == (
        "the network does not say how it is built; give a checkpoint, or a network from srq_nni.load"
    )


def test_training_asks_for_the_checkpoint(packed: Path) -> None:
    assert message(lambda: checkpoint.load_weights(small(), packed, quantization=BLOCK)) == (
        f"checkpoint '{packed}' is a packed file, which holds what inference needs; "
        "give the .pth file it was packed from here"
    )
