"""Reordered pixel shuffles: the same image, bit for bit, and left alone where channels are known to others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from srq_nni.speedup import export_float_onnx, export_onnx, pixel_shuffle
from tests.speedup.architectures import quantized
from tests.speedup.networks import photo

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnxruntime'")


def modes(path: Path) -> list[str]:
    shuffles = [node for node in onnx.load(path).graph.node if node.op_type == "DepthToSpace"]
    return [attribute.s.decode() for node in shuffles for attribute in node.attribute if attribute.name == "mode"]


def run(path: Path) -> torch.Tensor:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": photo(24).numpy()})[0])


def both_ways(write: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Return the file with reordered shuffles and the one with torch's."""
    write(folder / "fast.onnx")
    with monkeypatch.context() as patch:
        for room in ("graph", "export"):
            patch.setattr(f"srq_nni.speedup.{room}.reorder_pixel_shuffles", lambda proto: 0)
        write(folder / "plain.onnx")
    return folder / "fast.onnx", folder / "plain.onnx"


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "tensorrt"])
@pytest.mark.parametrize(
    "options",
    [{}, {"tail": 8}, {"tail": 8, "weight_range": "learned_per_channel"}],
    ids=["float tail", "integer tail", "scales of channels"],
)
@pytest.mark.parametrize("arch", ["EDSR", "MSRResNet", "RDN", "SRResNet"])
def test_the_image_is_the_same(
    arch: str, options: dict[str, Any], engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = quantized(arch, "pams", 4, "deploy", **options)
    fast, plain = both_ways(lambda path: export_onnx(network, path, engine), tmp_path, monkeypatch)
    assert modes(fast) == ["DCR"] and modes(plain) == ["CRD"]
    assert torch.equal(run(fast), run(plain))


def test_the_float_file_has_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = quantized("EDSR", "pams", 4, "paper")
    fast, plain = both_ways(lambda path: export_float_onnx(network, path), tmp_path, monkeypatch)
    assert modes(fast) == ["DCR"] and modes(plain) == ["CRD"]
    assert torch.equal(run(fast), run(plain))


def test_a_gate_on_the_shuffled_tensor_stays_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = quantized("EDSR", "ddtb", 4, "paper", tail=4, gated=True)
    fast, plain = both_ways(lambda path: export_onnx(network, path), tmp_path, monkeypatch)
    assert modes(plain) == ["CRD"]
    assert torch.allclose(run(fast), run(plain), atol=1e-4)


class Odd(nn.Module):
    """Pixel shuffles that cannot be reordered: read twice, after a normalisation, and of a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(3, 12, 3, padding=1)
        self.normed = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PReLU(12))
        self.read_twice = nn.Conv2d(3, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        twice = self.read_twice(x)
        total = self.shuffle(self.shared(x)) + self.shuffle(self.shared(x.flip(1))) + self.shuffle(self.normed(x))
        return total + self.shuffle(twice) + twice.mean()


def test_other_shuffles_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Odd().eval()
    path = export_float_onnx(network, tmp_path / "odd.onnx")
    assert modes(path) == ["CRD"] * 4
    with torch.no_grad():
        assert torch.allclose(run(path), network(photo(24)), atol=1e-5)


def test_reordering_twice_changes_nothing(tmp_path: Path) -> None:
    proto = onnx.load(export_float_onnx(quantized("EDSR", "pams", 4, "paper"), tmp_path / "m.onnx"))
    before = proto.SerializeToString()
    assert pixel_shuffle.reorder_pixel_shuffles(proto) == 0
    assert proto.SerializeToString() == before
