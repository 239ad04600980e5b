"""How far an output pixel sees: closed forms, the gradient as a witness, and what cannot be tiled."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from srq_nni.archs.quantized_arch import build_float
from srq_nni.speedup import export_float_onnx, export_onnx
from srq_nni.speedup.receptive_field import ReceptiveField, receptive_field
from tests.speedup.architectures import ARCHITECTURES, quantized

onnx = pytest.importorskip("onnx")


def field_of(network: nn.Module, folder: Path, channels: int = 3) -> ReceptiveField:
    export_float_onnx(network, folder / "field.onnx", sample=torch.zeros(1, channels, 12, 12))
    return receptive_field(onnx.load(folder / "field.onnx"))


def conv(inputs: int, outputs: int, kernel: int, dilation: int = 1, mode: str = "zeros") -> nn.Conv2d:
    made = nn.Conv2d(inputs, outputs, kernel, padding="same", dilation=dilation, padding_mode=mode)
    nn.init.uniform_(made.weight, 0.1, 1)  # nothing cancels, so the gradient shows all that is seen
    return made


def seen(network: nn.Module, size: int = 40) -> tuple[int, int]:
    """Return scale and radius from the gradient of the pixels in the middle."""
    image = torch.rand(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    output = network.double()(image)
    scale = output.shape[2] // size
    largest = 0
    for place in range(scale * size // 2, scale * size // 2 + scale):
        (gradient,) = torch.autograd.grad(output[0, 0, place, place], image, retain_graph=True)
        rows = gradient[0].abs().sum((0, 2)).nonzero().flatten()
        largest = max(largest, int((rows - place // scale).abs().max()))
    return scale, largest


@settings(max_examples=8)
@given(
    st.lists(
        st.sampled_from(
            [("conv", 1, 1), ("conv", 3, 1), ("conv", 5, 1), ("conv", 3, 2), ("reflect", 3, 1), ("up", 2, 1)]
        ),
        min_size=1,
        max_size=5,
    ).filter(lambda layers: sum(kind == "up" for kind, _, _ in layers) < 3)
)
def test_the_gradient_sees_no_further(tmp_path_factory: Any, layers: list[tuple[str, int, int]]) -> None:
    modules: list[nn.Module] = []
    for kind, size, dilation in layers:
        if kind == "up":
            modules += [conv(3, 12, 1), nn.PixelShuffle(2)]
        else:
            modules += [conv(3, 3, size, dilation, "reflect" if kind == "reflect" else "zeros"), nn.Softsign()]
    network = nn.Sequential(*modules)
    field = field_of(without_softsign(network), tmp_path_factory.mktemp("field"))
    scale, radius = seen(network)
    assert field.scale == scale and field.radius is not None
    assert radius <= field.radius <= radius + 1  # half a pixel is rounded up


def without_softsign(network: nn.Sequential) -> nn.Sequential:
    """Return the network with ReLU in place of the smooth function that keeps every gradient alive."""
    return nn.Sequential(*(nn.ReLU() if isinstance(module, nn.Softsign) else module for module in network))


@pytest.mark.parametrize(
    ("arch", "changes", "radius"),
    [
        # head 1 + 2 a block + end of the body 1 + one at each resolution: 1/1 (x2: 1 + 1/2, x4: 1 + 1/2 + 1/4)
        ("EDSR", {"num_block": 16, "upscale": 2}, math.ceil(1 + 32 + 1 + 1 + 1 / 2)),
        ("EDSR", {"num_block": 16, "upscale": 4}, math.ceil(1 + 32 + 1 + 1 + 1 / 2 + 1 / 4)),
        ("EDSR", {"num_block": 3, "upscale": 3}, math.ceil(1 + 6 + 1 + 1 + 1 / 3)),
        # two 3x3 before the blocks, one a layer, one after them
        ("RDN", {"num_block": 2, "num_layer": 3, "upscale": 2}, math.ceil(2 + 6 + 1 + 1 + 1 / 2)),
        # 9x9 at both ends
        ("SRResNet", {"num_block": 2, "upscale": 2}, math.ceil(4 + 4 + 1 + 1 + 4 / 2)),
        ("MSRResNet", {"num_block": 2, "upscale": 2}, math.ceil(1 + 4 + 1 + 1 / 2 + 1 / 2)),
    ],
)
def test_closed_forms(arch: str, changes: dict[str, int], radius: int, tmp_path: Path) -> None:
    network = build_float({"type": arch, **ARCHITECTURES[arch], **changes})
    assert field_of(network, tmp_path) == ReceptiveField(changes["upscale"], radius)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "tensorrt"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_integers_see_as_far_as_floats(engine: str, arch: str, tmp_path: Path) -> None:
    network = quantized(arch, "pams", 4, "deploy")
    export_onnx(network, tmp_path / "model.onnx", engine)
    assert receptive_field(onnx.load(tmp_path / "model.onnx")) == field_of(network, tmp_path)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gates_look_at_the_whole_image(arch: str, tmp_path: Path) -> None:
    export_onnx(quantized(arch, "ddtb", 4, "paper", gated=True), tmp_path / "model.onnx")
    field = receptive_field(onnx.load(tmp_path / "model.onnx"))
    assert (field.scale, field.radius) == (2, None)
    assert field.reason.startswith("ReduceMean '/") and field.reason.endswith(
        "/gate/ReduceMean' looks at the whole image"
    )


class Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(nn.functional.adaptive_avg_pool2d(x, 1))


class Flipped(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(2)


class Grid(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.arange(144.0).view(1, 1, 12, 12)


@pytest.mark.parametrize(
    ("network", "scale", "reason"),
    [
        (Attention(), 1, "GlobalAveragePool '/GlobalAveragePool' looks at the whole image"),
        (nn.Conv2d(3, 3, 3, 2, 1), None, "Conv '/Conv' has a stride"),
        (nn.Conv2d(3, 3, 3), None, "Conv '/Conv' changes the size of the image"),
        (nn.Sequential(nn.PixelUnshuffle(2), nn.PixelShuffle(2)), None, "tiles are not known to keep the result of "),
        (
            nn.InstanceNorm2d(3, affine=True),
            1,
            "InstanceNormalization '/InstanceNormalization' looks at the whole image",
        ),
        (Flipped(), None, "Slice '/Slice' works on rows or columns"),
        (Grid(), None, "Add '/Add' adds or multiplies a map of fixed size"),
        (
            nn.ConvTranspose2d(3, 3, 3, 2),
            None,
            "ConvTranspose '/ConvTranspose' does not enlarge the image by a whole factor",
        ),
        (nn.Upsample(scale_factor=1.5), None, "Resize '/Resize' does not enlarge the image by a whole factor"),
        (nn.ReflectionPad2d(1), None, "its output is not a whole multiple of the input in size"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_cannot_be_tiled(network: nn.Module, scale: int | None, reason: str, tmp_path: Path) -> None:
    network.append(nn.Conv2d(3, 3, 1)) if isinstance(network, nn.Sequential) else None
    field = field_of(nn.Sequential(nn.Conv2d(3, 3, 1), network), tmp_path)
    assert (field.scale, field.radius) == (scale, None)
    # names are paths in the network, which stands second here
    assert field.reason.replace("/1/", "/").replace("1.", "").startswith(reason)


def test_transposed_and_resized(tmp_path: Path) -> None:
    transposed = nn.ConvTranspose2d(3, 3, 9, 3, 4, 2)
    assert field_of(nn.Sequential(nn.Conv2d(3, 3, 5, padding=2), transposed), tmp_path) == ReceptiveField(3, 4)
    nearest = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Upsample(scale_factor=2), nn.Conv2d(3, 3, 3, padding=1))
    assert field_of(nearest, tmp_path) == ReceptiveField(2, 3)


class Sized(nn.Module):
    """A convolution whose result is changed by a number or a map that comes from the shape of its input."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv = kind, conv(3, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        height, channels = torch.onnx.operators.shape_as_tensor(x)[2], torch.onnx.operators.shape_as_tensor(x)[1]
        if self.kind == "number":
            return y + height / 1000
        if self.kind == "channels":
            return y * channels
        if self.kind == "rows":
            return y + torch.arange(x.shape[2])[:, None] / 100
        if self.kind == "joined":
            return torch.cat([y, torch.ones_like(y[:, :1]) * height], 1)
        return torch.cat([y, torch.full((1, 1, x.shape[2], x.shape[3]), 0.5)], 1)  # a noise level


@pytest.mark.parametrize(
    ("kind", "refuses"),
    [("number", "Add '/Add'"), ("rows", "Add '"), ("joined", "Concat '"), ("channels", ""), ("filled", "")],
)
def test_numbers_from_the_size_of_the_image(kind: str, refuses: str, tmp_path: Path) -> None:
    field = field_of(Sized(kind), tmp_path)
    assert (field.scale, field.radius) == (1, None if refuses else 1)
    assert field.reason.startswith(refuses)
    assert field.reason.endswith(" takes a number that depends on the size of the image" if refuses else "")
