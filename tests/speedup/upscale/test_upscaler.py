"""What becomes of channels, depth, alpha and value range, with networks that only repeat pixels; which files run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from skimage import data
from torch import nn

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import QuantizedNetwork
from srq_nni.errors import CheckpointError, ExportError, OptionError
from srq_nni.quantization.layers import calibrate
from srq_nni.speedup import export_onnx
from srq_nni.speedup.upscale import Picture, SRNetwork, network, upscale
from tests.speedup.architectures import quantized
from tests.speedup.networks import photo
from tests.speedup.upscale.networks import nearest, repeated

onnx = pytest.importorskip("onnx")
pytest.importorskip("openvino")
PHOTO = np.ascontiguousarray(data.astronaut()[100:117, 150:173])
DEEP = np.random.default_rng(0).integers(0, 65536, (17, 23, 3)).astype(np.uint16)


def load(path: Path, **options: Any) -> SRNetwork:
    return SRNetwork(path, **{"engine": "openvino", "threads": 1, **options})


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("pixels", [PHOTO, DEEP, PHOTO[..., :1], DEEP[..., :1]], ids=["8", "16", "grey 8", "grey 16"])
@pytest.mark.parametrize(("channels", "white"), [(3, 1), (3, 255), (1, 1)])
def test_nearest_repeats_every_value(
    engine: str, pixels: np.ndarray, channels: int, white: float, tmp_path: Path
) -> None:
    pytest.importorskip(engine)
    repeating = load(nearest(tmp_path / "nearest.onnx", 2, channels, white), engine=engine)
    assert (repeating.scale, repeating.radius, repeating.channels, repeating.value_range) == (2, 0, channels, white)
    result = upscale(repeating, Picture(pixels, None, b"profile"), tile=5)
    assert result.pixels.dtype == pixels.dtype and result.profile == b"profile" and result.alpha is None
    assert np.array_equal(result.pixels, repeated(pixels))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
def test_tiny_images(size: tuple[int, int], tmp_path: Path) -> None:
    pixels = DEEP[: size[0], :1].repeat(size[1], 1)
    assert np.array_equal(upscale(load(nearest(tmp_path / "x.onnx", 3)), Picture(pixels)).pixels, repeated(pixels, 3))


@pytest.mark.parametrize("pixels", [PHOTO, DEEP], ids=["8", "16"])
def test_alpha_is_interpolated_and_hides_no_colour_that_bleeds(pixels: np.ndarray, tmp_path: Path) -> None:
    alpha = pixels[..., 0].copy()
    alpha[:, 10:] = 0
    alpha[:, :10] |= 1
    result = upscale(load(nearest(tmp_path / "nearest.onnx")), Picture(pixels, alpha))
    assert result.alpha is not None
    assert np.array_equal(result.alpha, cv2.resize(alpha, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC))
    shown = pixels.copy()
    shown[:, 10:] = pixels[:, 9:10]  # the nearest visible pixel is the one left of the edge
    assert np.array_equal(result.pixels, repeated(shown))
    clear = upscale(load(tmp_path / "nearest.onnx"), Picture(pixels, np.zeros_like(alpha)))
    assert np.array_equal(clear.pixels, repeated(pixels))


def test_a_trained_network_gives_what_the_engine_gives(tmp_path: Path) -> None:
    from srq_nni.speedup import ModelSpeedupOpenVINO

    export_onnx(quantized("EDSR", "pams", 4, "paper"), tmp_path / "model.onnx")
    speedup = ModelSpeedupOpenVINO(tmp_path / "model.onnx", (1, 3, 40, 40), threads=1)
    speedup.compress()
    expected = (speedup.inference(photo(40))[0][0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    pixels = (photo(40)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(upscale(load(tmp_path / "model.onnx"), Picture(pixels)).pixels, expected.numpy())


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_checkpoint_is_exported_on_the_way(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    blocks = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": 2}
    options = {"quantizer": "pams", "bits": 4}
    model = QuantizedNetwork(blocks, options)
    calibrate(model, [photo(48)])
    checkpoint.save(
        {"params": model.state_dict(), "srq": checkpoint.metadata_of(blocks, options)}, tmp_path / "net.pth"
    )
    export_onnx(tmp_path / "net.pth", tmp_path / "net.onnx", engine)
    from_file, from_checkpoint = load(tmp_path / "net.onnx", engine=None), load(tmp_path / "net.pth", engine=engine)
    assert from_file.engine == engine, "the engine that a file was written for is the default"
    a, b = (upscale(loaded, Picture(PHOTO)).pixels for loaded in (from_file, from_checkpoint))
    assert np.array_equal(a, b)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.pth"]


def test_what_a_file_says_of_itself(tmp_path: Path) -> None:
    export_onnx(quantized("RDN", "pams", 4, "paper"), tmp_path / "model.onnx", metadata={"value_range": "255"})
    entries = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert {key: entries[key] for key in ("scale", "value_range", "colours", "engine")} == {
        "scale": "2",
        "value_range": "255",
        "colours": "rgb",
        "engine": "openvino",
    }
    assert load(tmp_path / "model.onnx").value_range == 255
    assert load(tmp_path / "model.onnx", value_range=1).value_range == 1


def test_gates_run_whole_and_refuse_tiles(tmp_path: Path) -> None:
    export_onnx(quantized("EDSR", "ddtb", 4, "paper", gated=True), tmp_path / "gated.onnx")
    gated = load(tmp_path / "gated.onnx")
    assert upscale(gated, Picture(PHOTO)).size == (34, 46)
    with pytest.raises(ExportError) as error:
        upscale(gated, Picture(PHOTO), tile=64)
    assert str(error.value) == (
        f"'{tmp_path}/gated.onnx' cannot be tiled: ReduceMean '/body/body.0/conv1/input_quantizer/image_codes/gate/"
        "ReduceMean' looks at the whole image, so parts of an image would not fit together; leave --tile out (memory "
        "then grows with the image)"
    )


def test_other_peoples_files(tmp_path: Path) -> None:
    proto = onnx.load(nearest(tmp_path / "ours.onnx"))
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "theirs.onnx")
    with pytest.raises(ExportError) as error:
        load(tmp_path / "theirs.onnx")
    assert str(error.value) == (
        f"'{tmp_path}/theirs.onnx' does not say whether white is 1 or 255 in its images; add --value-range 1 or "
        "--value-range 255 (files of srq export say it)"
    )
    theirs = load(tmp_path / "theirs.onnx", engine=None, value_range=1)
    assert theirs.engine == "openvino"
    assert np.array_equal(upscale(theirs, Picture(PHOTO)).pixels, repeated(PHOTO))


class Sized(nn.Module):
    """Makes sense as a network of images only by half."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> Any:
        if self.kind == "two":
            return x, 2 * x
        if self.kind == "crop":
            return x[..., 1:-1, 1:-1]
        if self.kind == "nan":
            return x / (x - x)
        return x.mean(1, keepdim=True)


def plain(kind: str, path: Path, shape: tuple[int, ...] = (1, 3, 8, 8), **options: Any) -> Path:
    sizes = {"dynamic_axes": {"input": {0: "n", 2: "h", 3: "w"}}, "input_names": ["input"], **options}
    torch.onnx.export(Sized(kind), (torch.rand(shape),), path, dynamo=False, **sizes)
    return path


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("two", {}, "has 1 inputs and 2 outputs; give a network from one image to one image"),
        (
            "crop",
            {},
            "turns 32 x 32 pixels into an array of shape (3, 30, 30); give a network that enlarges images by a whole "
            "factor",
        ),
        (
            "grey",
            {},
            "turned 23 x 17 pixels into an array of shape (1, 17, 23) where (3, 17, 23) was due; give a network",
        ),
        ("nan", {}, "returned NaN or infinity; give a network whose weights are finite"),
        ("nan", {"dynamic_axes": {}}, "takes images of 8 x 8 pixels only; export it with a free height and width"),
        (
            "nan",
            {"shape": (1, 4, 8, 8)},
            "takes float of shape ? x 4 x ? x ?; give a network for float images (N, C, H, W) of 1 or 3 channels",
        ),
    ],
)
def test_networks_of_no_use(kind: str, options: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as error:
        upscale(load(plain(kind, tmp_path / "x.onnx", **options), value_range=1), Picture(PHOTO))
    assert str(error.value).startswith(f"'{tmp_path}/x.onnx' {text}")


def test_wrong_options(tmp_path: Path) -> None:
    repeating = load(nearest(tmp_path / "nearest.onnx"))
    with pytest.raises(OptionError, match=r"^tile: -1 is not allowed; give a number of pixels from 0$"):
        upscale(repeating, Picture(PHOTO), tile=-1)
    with pytest.raises(OptionError, match=r"^overlap: -3 is not allowed; give a number of pixels from 0$"):
        upscale(repeating, Picture(PHOTO), overlap=-3)
    with pytest.raises(ExportError, match=r"^engine: 'openvin' is not known; give one of .*; did you mean 'openvino'?"):
        load(tmp_path / "nearest.onnx", engine="openvin")
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(
            ExportError, match=r"^value_range: '\S+' is not allowed; give the value of white, such as 1"
        ):
            load(tmp_path / "nearest.onnx", value_range=wrong)
    with pytest.raises(ExportError, match=r"nearst.onnx' cannot be read: .*did you mean 'nearest.onnx'"):
        load(tmp_path / "nearst.onnx")
    with pytest.raises(CheckpointError, match=r"does not exist; give the path of a .pth file"):
        load(tmp_path / "net.pth")
    with pytest.raises(ExportError, match=r"^threads: 0 is not allowed"):
        load(tmp_path / "nearest.onnx", threads=0)
    newer = onnx.load(tmp_path / "nearest.onnx")
    next(entry for entry in newer.metadata_props if entry.key == "srq_format").value = "99"
    onnx.save(newer, tmp_path / "newer.onnx")
    with pytest.raises(ExportError, match=r"has format 99 and this version reads up to 1; update srq-nni$"):
        load(tmp_path / "newer.onnx")


def test_an_engine_that_is_missing_is_replaced_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxruntime")
    export_onnx(quantized("EDSR", "pams", 4, "deploy"), tmp_path / "model.onnx", "onnxruntime")
    monkeypatch.setattr(network, "runs_here", lambda engine: False)
    assert load(tmp_path / "model.onnx", engine=None).engine == "openvino"
    assert caplog.messages == ["the file was written for onnxruntime, which does not run here; openvino runs it"]
    monkeypatch.setattr(network, "engines_here", lambda: ())
    with pytest.raises(ExportError, match=r'install one with: pip install "srq-nni\[openvino\]"$'):
        load(tmp_path / "model.onnx", engine=None)
