"""What an engine says while it runs an image is one sentence, and sizes that a file states are checked before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from srq_nni.errors import ExportError
from srq_nni.speedup import ModelSpeedupONNXRuntime, ModelSpeedupOpenVINO
from srq_nni.speedup.bench import benchmark
from srq_nni.speedup.image_metadata import image_channels

onnx = pytest.importorskip("onnx")
ENGINES: dict[str, Any] = {"openvino": ModelSpeedupOpenVINO, "onnxruntime": ModelSpeedupONNXRuntime}
every_engine = pytest.mark.parametrize("engine", ENGINES)


def convolution(path: Path, shape: tuple[Any, ...], *, multiple: int = 1) -> Path:
    """Write a convolution for inputs of ``shape``, whose height and width have to be multiples of a number."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    channels = shape[1]
    weight = helper.make_tensor("w", kind, [12, channels, 3, 3], [1.0] * 108 * channels)
    nodes = [
        helper.make_node("SpaceToDepth", ["x"], ["blocks"], blocksize=multiple),
        helper.make_node("DepthToSpace", ["blocks"], ["image"], blocksize=multiple),
        helper.make_node("Conv", ["image", "w"], ["z"], pads=[1, 1, 1, 1]),
        helper.make_node("DepthToSpace", ["z"], ["y"], blocksize=2),
    ]
    given = helper.make_tensor_value_info("x", kind, shape)
    taken = helper.make_tensor_value_info("y", kind, ["n", 3, "p", "q"])
    graph = helper.make_graph(nodes, "convolution", [given], [taken], [weight])
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


def built(engine: str, path: Path) -> Any:
    pytest.importorskip(engine)
    speedup = ENGINES[engine](path, (1, 3, 16, 16), threads=1)
    speedup.compress()
    return speedup


@pytest.mark.parametrize(
    ("engine", "shape", "multiple", "said"),
    [
        ("openvino", (1, 3, 16, 8), 1, "and the tensor (shape=(1.3.13.13)) are incompatible"),
        ("onnxruntime", ("n", 3, "h", "w"), 8, "SpaceToDepth requires input height to be a multiple of block_size"),
    ],
)
def test_a_size_that_the_engine_refuses(
    engine: str,
    shape: tuple[Any, ...],
    multiple: int,
    said: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    speedup = built(engine, convolution(tmp_path / "x.onnx", shape, multiple=multiple))
    for run in (speedup.inference, speedup.outputs):
        with pytest.raises(ExportError) as error:
            run(torch.ones(1, 3, 13, 13))
        message = str(error.value)
        assert message.startswith(f"{engine} does not run an input of shape (1, 3, 13, 13): ")
        assert message.endswith(f"{said}; give an image of a size that the network takes") and "\n" not in message
    assert capfd.readouterr().err == ""


@every_engine
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("std::bad_alloc"), "std::bad_alloc"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("Exception from x.cpp:1:\nFailed to allocate 9 bytes.\n\n"), "Failed to allocate 9 bytes"),
        (RuntimeError("bfc_arena.cc:360 Failed to allocate memory"), "bfc_arena.cc:360 Failed to allocate memory"),
        (RuntimeError("CUDA out of memory"), "CUDA out of memory"),
    ],
)
def test_too_little_memory(
    engine: str, error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speedup = built(engine, convolution(tmp_path / "x.onnx", ("n", 3, "h", "w")))

    def fails(array: Any) -> Any:
        raise error

    monkeypatch.setattr(speedup, "_run", fails)
    with pytest.raises(ExportError) as raised:
        speedup.inference(torch.ones(1, 3, 8, 9))
    assert str(raised.value) == (
        f"{engine} does not run an input of shape (1, 3, 8, 9): {said}; give a smaller image, or a smaller tile of it"
    )
    assert raised.value.__cause__ is error


REFUSED: list[tuple[tuple[Any, ...], str]] = [
    (
        (1, 3, 64, 48),
        "takes images of 48 x 64 pixels only; give the size 64x48 (height x width), or export it with a free height "
        "and width",
    ),
    (
        (1, 3, "h", 48),
        "takes images of 48 x ? pixels only; give the size ?x48 (height x width), or export it with a free height and "
        "width",
    ),
    (
        ("n", 5, "h", "w"),
        "takes float of shape ? x 5 x ? x ?; give a network for float images (N, C, H, W) of 1 or 3 channels",
    ),
    (("n", 3), "takes float of shape ? x 3; give a network for float images (N, C, H, W) of 1 or 3 channels"),
]


@pytest.mark.parametrize(("shape", "text"), REFUSED)
def test_a_benchmark_looks_at_the_input_first(shape: tuple[Any, ...], text: str, tmp_path: Path) -> None:
    path = convolution(tmp_path / "x.onnx", shape)
    with pytest.raises(ExportError) as error:
        benchmark(str(path), size=(32, 32), repeats=1, engines=["openvino"])
    assert str(error.value) == f"'{path}' {text}"


def test_networks_in_memory_are_looked_at_too() -> None:
    with pytest.raises(ExportError, match=r"^'Conv2d' takes float of shape \S+ x 5 x \S+ x \S+; give a network for"):
        benchmark(torch.nn.Conv2d(5, 3, 1), size=(32, 32), repeats=1, engines=["openvino"])


def test_a_fixed_size_that_fits_is_no_obstacle(tmp_path: Path) -> None:
    path = convolution(tmp_path / "x.onnx", (1, 3, 64, 48))
    assert image_channels(onnx.load(path), path, (64, 48)) == 3
    with pytest.raises(ExportError, match=r"takes images of 48 x 64 pixels only; export it with a free height and wid"):
        image_channels(onnx.load(path), path)
