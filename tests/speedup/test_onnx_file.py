"""ONNX files from strangers: their tensors lie in their own folder, or no engine sees the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from srq_nni.errors import ExportError
from srq_nni.speedup import ModelSpeedupONNXRuntime, ModelSpeedupOpenVINO, export_onnx
from srq_nni.speedup.onnx_file import read_onnx
from tests.speedup.networks import edsr, photo

onnx = pytest.importorskip("onnx")
ENGINES = {"onnxruntime": ModelSpeedupONNXRuntime, "openvino": ModelSpeedupOpenVINO}


def scaling(location: str | None = None, **entries: str) -> Any:
    """Return a model that multiplies its input by the four float32 of a tensor, which may lie in another file."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    factor = onnx.numpy_helper.from_array(np.array([1, 2, 3, 4], np.float32), "factor")
    if location is not None:
        factor.ClearField("raw_data")
        factor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            factor.external_data.add(key=key, value=value)
    ports = [helper.make_tensor_value_info(name, kind, [1, 3, 1, 4]) for name in ("x", "y")]
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    graph = helper.make_graph([node], "scaling", ports[:1], ports[1:], [factor])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def saved(model: Any, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with ``weights.bin``, beside a ``secret.bin`` that no model may read."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(bytes(8) + np.array([1, 2, 3, 4], np.float32).tobytes())
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    return tmp_path / "model"


@pytest.mark.parametrize("engine", ENGINES)
def test_data_beside_the_file_are_taken_in(engine: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(engine)
    inside = saved(scaling(), folder / "inside.onnx")
    beside = saved(scaling("weights.bin", offset="8", length="16"), folder / "beside.onnx")
    assert read_onnx(inside) == inside.read_bytes()
    monkeypatch.chdir(folder.parent)  # engines would look for the data here
    x, outputs = torch.rand(1, 3, 1, 4), []
    for path in (inside, beside):
        speedup = ENGINES[engine](path, (1, 3, 1, 4))
        speedup.compress()
        outputs.append(speedup.inference(x)[0])
    assert torch.equal(outputs[0], x * torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.equal(*outputs)
    speedup.export_quantized_model(folder.parent / "copy.onnx")
    assert b"weights.bin" not in (folder.parent / "copy.onnx").read_bytes()


def as_it_is(model: Any) -> Any:
    return model


def in_an_attribute(model: Any) -> Any:
    """Move the tensor into a Constant node of the main graph."""
    factor = model.graph.initializer.pop()
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["factor"], value=factor))
    return model


def in_a_branch(model: Any) -> Any:
    """Move the tensor into the subgraph of an If."""
    branch = onnx.GraphProto(name="branch", node=list(model.graph.node), output=list(model.graph.output))
    branch.initializer.append(model.graph.initializer.pop())
    del model.graph.node[:]
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))
    return model


def in_a_function(model: Any) -> Any:
    """Move the tensor into a function of the model."""
    node = onnx.helper.make_node("Constant", [], ["factor"], value=model.graph.initializer.pop())
    model.functions.append(onnx.FunctionProto(name="f", domain="own", node=[node]))
    return model


def in_a_sparse_tensor(model: Any) -> Any:
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=model.graph.initializer.pop(), dims=[4]))
    return model


@pytest.mark.parametrize(
    "place",
    [as_it_is, in_an_attribute, in_a_branch, in_a_function, in_a_sparse_tensor],
    ids=lambda place: place.__name__,
)
@pytest.mark.parametrize(
    "location", ["../secret.bin", "{folder}/../secret.bin", "sub/../../secret.bin", "link", "", "."]
)
def test_data_elsewhere_are_refused(place: Callable[[Any], Any], location: str, folder: Path) -> None:
    os.symlink(folder.parent / "secret.bin", folder / "link")
    location = location.format(folder=folder)
    path = saved(place(scaling(location)), folder / "model.onnx")
    with pytest.raises(ExportError) as caught:
        read_onnx(path)
    assert str(caught.value) == (
        f"'{path}' keeps the tensor 'factor' in {location!r}, outside its own folder; "
        "give a file whose data lie beside it, or one that holds them itself"
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_no_engine_sees_a_refused_file(engine: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(engine)
    monkeypatch.setattr(ENGINES[engine], "_build", lambda *_: pytest.fail("the engine was called"))
    speedup = ENGINES[engine](saved(scaling("../secret.bin"), folder / "model.onnx"), (1, 3, 1, 4))
    with pytest.raises(ExportError, match="outside its own folder"):
        speedup.compress()


@pytest.mark.parametrize(
    ("location", "entries", "reason"),
    [
        ("weights.bin", {"offset": "16"}, None),
        ("weights.bin", {"offset": "20", "length": "16"}, "it has 24 bytes"),
        ("weights.bin", {"offset": "-8"}, "it has 24 bytes"),
        ("weights.bin", {"offset": "eight"}, "invalid literal for int() with base 10: 'eight'"),
        ("missing.bin", {}, "it has 0 bytes"),
    ],
)
def test_data_that_are_cut_off(location: str, entries: dict[str, str], reason: str | None, folder: Path) -> None:
    path = saved(scaling(location, **entries), folder / "model.onnx")
    if reason is None:
        assert len(onnx.load_model_from_string(read_onnx(path)).graph.initializer[0].raw_data) == 8
        return
    with pytest.raises(ExportError) as caught:
        read_onnx(path)
    assert str(caught.value) == (
        f"'{path}' keeps the tensor 'factor' in {location!r}, which does not hold it ({reason}); "
        "put the whole data file beside it"
    )


def test_what_is_no_onnx_file(folder: Path) -> None:
    for content in (b"", b"text", bytes(100), b"\x80" * 40):
        (folder / "m.onnx").write_bytes(content)
        with pytest.raises(ExportError) as caught:
            read_onnx(folder / "m.onnx")
        expected = f"'{folder / 'm.onnx'}' is not an ONNX file, or damaged; write it again with srq export"
        assert str(caught.value) == expected
    with pytest.raises(ExportError) as caught:
        read_onnx(folder / "n.onnx")
    assert str(caught.value) == (
        f"'{folder / 'n.onnx'}' cannot be read: No such file or directory; give an ONNX file written by export_onnx"
        "; did you mean 'm.onnx'?"
    )
    with pytest.raises(ExportError, match="cannot be read: Is a directory"):
        read_onnx(folder)


def test_a_cut_export_is_refused(tmp_path: Path) -> None:
    """The file of a copy that broke off somewhere."""
    export_onnx(edsr("pams", 4), tmp_path / "whole.onnx", "openvino", sample=photo())
    content = (tmp_path / "whole.onnx").read_bytes()
    for share in (0.01, 0.4, 0.99):
        (tmp_path / "cut.onnx").write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ExportError, match=r"cut\.onnx' is not an ONNX file, or damaged"):
            read_onnx(tmp_path / "cut.onnx")
