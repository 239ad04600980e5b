"""ModelSpeedupTensorRT without a GPU: what it asks of each version of the package, and what it says when it cannot."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import srq_nni
from srq_nni.errors import ExportError
from srq_nni.speedup import ModelSpeedupTensorRT, export_onnx, integer_simulator, lint_onnx, tensorrt
from srq_nni.speedup.inspector import HIDDEN, NAMES_ONLY, precision_report
from tests.speedup.networks import calibrated, difference, edsr, photo

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.speedup.fake_tensorrt import VERSIONS, FakeCuda, FakeTensorRT

SHAPES = ((1, 3, 8, 8), (1, 3, 32, 32), (2, 3, 48, 48))
every_version = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a fake package and a fake GPU in place; returns the function that does it."""

    def install(version: str = VERSIONS[1], refuse: str = "") -> FakeTensorRT:
        module = FakeTensorRT(version, refuse)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.setattr(tensorrt, "Cuda", FakeCuda)
        return module

    return install


def speedup_of(network: Any, folder: Path, **options: Any) -> ModelSpeedupTensorRT:
    return ModelSpeedupTensorRT(network, (2, 3, 48, 48), onnx_path=folder / "model.onnx", shapes=SHAPES, **options)


def test_signature_is_that_of_nni() -> None:
    """C/quantization_speedup/integrated_tensorrt.py of NNI 3.0; further arguments are keywords with defaults."""
    wanted = {
        "__init__": ["self", "model", "input_shape", "config", "onnx_path"],
        "compress": ["self"],
        "compress_with_calibrator": ["self", "calib"],
        "inference": ["self", "test_data", "reset_context"],
        "export_quantized_model": ["self", "path"],
        "load_quantized_model": ["self", "path"],
    }
    for name, names in wanted.items():
        parameters = inspect.signature(getattr(srq_nni.ModelSpeedupTensorRT, name)).parameters
        positional = [key for key, value in parameters.items() if value.kind is not value.KEYWORD_ONLY]
        assert positional == names
        assert all(value.default is not value.empty for value in list(parameters.values())[len(names) :])


@every_version
def test_what_each_version_is_asked_for(version: str, fake: Any, tmp_path: Path) -> None:
    module = fake(version)
    speedup_of(edsr("pams", 4), tmp_path, workspace=2**20).compress()
    flags = {"8.6.1": 1 << 0, "10.16.1.11": 1 << 1, "11.4.0.106": 1 << 0}[version]
    assert module.arguments("create_network") == (flags,)
    assert ("set_flag", "INT8") in module.calls if version == "8.6.1" else "set_flag" not in module.names()
    assert module.arguments("clear_flag") == ("TF32",)
    assert module.arguments("profiling_verbosity") == (module.ProfilingVerbosity.DETAILED,)
    assert module.arguments("set_shape") == ("input", *SHAPES)
    assert module.arguments("set_memory_pool_limit") == ("WORKSPACE", 2**20)
    assert module.names().index("set_shape") < module.names().index("build_serialized_network")


@every_version
def test_images_go_through_memory_addresses_and_equal_the_simulator(version: str, fake: Any, tmp_path: Path) -> None:
    module = fake(version)
    network = edsr("pams", 4)
    speedup = speedup_of(network, tmp_path)
    speedup.compress()
    for x in (photo(40), torch.cat([photo(24), photo(24, 200)])):
        output, seconds = speedup.inference(x)
        with torch.no_grad():
            expected = integer_simulator(network, engine="tensorrt")(x)
        assert output.shape == expected.shape and output.dtype == torch.float32
        assert (difference(output, expected) < 0.01).float().mean() > 0.95
        assert seconds == 0.25
    assert ("execute_async_v3", FakeCuda.handle) in module.calls


def test_a_context_is_kept_until_it_is_reset(fake: Any, tmp_path: Path) -> None:
    fake()
    speedup = speedup_of(edsr("pams", 4), tmp_path)
    speedup.compress()
    first, _ = speedup.inference(photo())
    kept = first.clone()
    speedup.inference(photo(32, 200))
    assert torch.equal(first, kept)
    assert speedup._session is not None and speedup._session._engine.contexts == 1
    again, _ = speedup.inference(photo(), reset_context=True)
    assert speedup._session._engine.contexts == 2 and torch.equal(again, kept)


@every_version
def test_report_of_what_ran(version: str, fake: Any, tmp_path: Path) -> None:
    fake(version)
    speedup = speedup_of(edsr("pams", 4, blocks=2), tmp_path)
    speedup.compress()
    report = speedup.precision_report()
    assert (report.integer_convolutions, len(report.kernels), report.notes) == (4, 8, ())
    assert {kernel[1] for kernel in report.kernels} == {"int8", "float32"}
    assert str(report).endswith("tensorrt: 4 of 8 convolutions in integers")
    assert report.integer_convolutions == lint_onnx(tmp_path / "model.onnx", "tensorrt").integer_convolutions


def test_report_of_a_layer_as_nvidias_documents_show_it() -> None:
    layer = {"Name": "a + b", "LayerType": "CaskConvolution", "TacticName": "sm80_xmma_fprop_i8i8"}
    float_input = {"Inputs": [{"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}]}
    int8_input = {
        "Inputs": [{"Name": "x", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}]
    }
    named = {"Inputs": [{"Format": "kLINEAR", "DataType": "Float"}]}
    layers = [
        {**layer, **int8_input, "Weights": {"Type": "Int8", "Count": 9}},
        {**layer, **float_input, "Weights": {"Type": "Half", "Count": 9}},
        {**layer, **int8_input},
        {**layer, **named},
        {"Name": "fused", "LayerType": "CaskGemmConvolution", "Weights": {"Type": "Int8"}},
        {"Name": "shuffle", "LayerType": "Shuffle", **int8_input},
    ]
    report = precision_report(json.dumps({"Layers": layers, "I/O Tensors": []}), 7)
    assert [kernel[1] for kernel in report.kernels] == ["int8", "float16", "int8", "float32", "int8"]
    assert report.kernels[4] == ("fused", "int8", "CaskGemmConvolution")
    assert report.notes == (HIDDEN.format(found=5, all=7),)
    assert precision_report(json.dumps({"Layers": ["a + b"]}), 1).notes == (NAMES_ONLY,)


def test_engine_files(fake: Any, tmp_path: Path) -> None:
    fake()
    network = edsr("pams", 4)
    speedup = speedup_of(network, tmp_path)
    speedup.compress()
    speedup.export_quantized_model(tmp_path / "model.plan")
    other = ModelSpeedupTensorRT(network, (1, 3, 32, 32))
    other.load_quantized_model(tmp_path / "model.plan")
    assert torch.equal(other.inference(photo(48))[0], speedup.inference(photo(48))[0])  # its own sizes hold
    assert other.precision_report().integer_convolutions == 2
    from_onnx = ModelSpeedupTensorRT(tmp_path / "model.onnx", (1, 3, 48, 48))
    from_onnx.compress()
    assert torch.equal(from_onnx.inference(photo(48))[0], speedup.inference(photo(48))[0])
    (tmp_path / "model.onnx").rename(tmp_path / "M4.ONNX")
    from_onnx.load_quantized_model(tmp_path / "M4.ONNX")
    assert torch.equal(from_onnx.inference(photo(48))[0], speedup.inference(photo(48))[0])


def test_calibration_config_and_calibrator_reach_the_engine(fake: Any, tmp_path: Path) -> None:
    fake()
    quantizer = srq_nni.PAMSQuantizer(edsr_without_quantizers(), srq_nni.config_list("EDSR", "pams", 8))
    network = calibrated(quantizer.quantized_network(), photo(64))
    speedup = speedup_of(quantizer.quantized_network(), tmp_path)
    speedup.compress_with_calibrator([photo(64)])
    with torch.no_grad():
        expected = integer_simulator(network, engine="tensorrt")(photo(40))
    assert (difference(speedup.inference(photo(40))[0], expected) < 0.01).float().mean() > 0.9
    plain = srq_nni.PAMSQuantizer(edsr_without_quantizers(), srq_nni.config_list("EDSR", "pams", 8))
    config = plain.get_calibration_config()
    by_config = ModelSpeedupTensorRT(plain.unwrap_model(), (1, 3, 48, 48), config, tmp_path / "config.onnx")
    by_config.compress()
    assert by_config.report is not None and len(by_config.report.layers) == 2
    assert by_config.inference(photo(40))[0].shape == (1, 3, 80, 80)


def edsr_without_quantizers() -> torch.nn.Module:
    from basicsr.archs.edsr_arch import EDSR

    torch.manual_seed(0)
    return EDSR(3, 3, num_feat=8, num_block=1, upscale=2, rgb_mean=(0, 0, 0))


def test_messages_go_to_logging(fake: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fake()
    (tmp_path / "foreign.plan").write_bytes(b"{}\0x")
    with caplog.at_level(logging.WARNING), pytest.raises(ExportError):
        ModelSpeedupTensorRT("x", (1, 3, 8, 8)).load_quantized_model(tmp_path / "foreign.plan")
    levels = {record.message: record.levelname for record in caplog.records}
    assert levels == {"plans are not portable": "WARNING", "Serialization assertion failed.": "ERROR"}


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        (
            "parse",
            "tensorrt 10.16.1.11 cannot read the ONNX file: Assertion failed: zero point must be 0; see srq_nni.",
        ),
        (
            "build",
            "tensorrt 10.16.1.11 cannot build an engine: no kernel for Conv; give smaller shapes, or see srq_nni.",
        ),
        (
            "dtype",
            "an engine with 1 input(s) and 1 output(s), not all of them float32, is not allowed; give one of a super-",
        ),
        ("memory", "the GPU has no memory left for this engine; free some, or build it for smaller shapes"),
        ("run", "tensorrt did not run an input of shape (1, 3, 32, 32); see its messages in the log"),
    ],
)
def test_what_tensorrt_refuses_is_one_sentence(refuse: str, message: str, fake: Any, tmp_path: Path) -> None:
    fake(refuse=refuse)
    speedup = speedup_of(edsr("pams", 4), tmp_path)
    with pytest.raises(ExportError) as error:
        speedup.compress()
        speedup.inference(photo())
    assert str(error.value).startswith(message)


def test_what_the_gpu_says_while_it_runs_is_one_sentence(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake()
    speedup = speedup_of(edsr("pams", 4), tmp_path)
    speedup.compress()

    def fails(*arguments: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(FakeCuda, "empty", fails)
    with pytest.raises(ExportError) as error:
        speedup.inference(photo())
    assert str(error.value) == (
        "tensorrt does not run an input of shape (1, 3, 32, 32): CUDA out of memory. Tried to allocate 9 GiB; "
        "give a smaller image, or a smaller tile of it"
    )


def test_wrong_use(fake: Any, tmp_path: Path) -> None:
    fake()
    speedup = speedup_of(edsr("pams", 4), tmp_path)
    with pytest.raises(
        ExportError, match=r"^there is no engine yet; call compress\(\) or load_quantized_model\(path\)"
    ):
        speedup.inference(photo())
    speedup.compress()
    with pytest.raises(ExportError) as error:
        speedup.inference(photo(64))
    assert str(error.value) == (
        "an input of shape (1, 3, 64, 64) is not allowed: this engine takes (1, 3, 8, 8) to (2, 3, 48, 48); "
        "build it with other shapes=(smallest, typical, largest), or cut the image into tiles"
    )
    with pytest.raises(ExportError, match=r"^an input of shape \(3, 8, 8\) and dtype torch\.float32 is not allowed"):
        speedup.inference(torch.zeros(3, 8, 8))
    missing = tmp_path / "missing.plan"
    with pytest.raises(ExportError) as error:
        speedup.load_quantized_model(missing)
    assert str(error.value) == (
        f"'{missing}' cannot be read: No such file or directory; give a file of export_quantized_model"
    )
    (tmp_path / "broken.plan").write_bytes(b"{}\0x")
    with pytest.raises(ExportError, match=r"cannot load this engine: Serialization assertion failed\.; an engine runs"):
        speedup.load_quantized_model(tmp_path / "broken.plan")
    assert speedup.inference(photo())[0].shape == (1, 3, 64, 64)  # the engine from before still runs
    for shapes in (SHAPES[:2], SHAPES[::-1], ((1, 1, 8, 8), *SHAPES[1:]), ((1, 3, 8), *SHAPES[1:])):
        with pytest.raises(
            ExportError, match=r"is not allowed; give three shapes \(N, 3, H, W\), smallest, typical and"
        ):
            ModelSpeedupTensorRT("x", (1, 3, 8, 8), shapes=shapes)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"^workspace: 0 is not allowed; give bytes from 1, or None for all there is"):
        ModelSpeedupTensorRT("x", (1, 3, 8, 8), workspace=0)


def test_default_sizes_reach_from_8_pixels_to_the_input_shape() -> None:
    assert ModelSpeedupTensorRT("x", (4, 3, 90, 6)).shapes == ((1, 3, 8, 6), (4, 3, 90, 6), (4, 3, 90, 6))


def test_a_larger_image_builds_the_engine_anew_unless_limits_are_given(
    fake: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = fake()
    network = edsr("pams", 4)
    small = ModelSpeedupTensorRT(network, (1, 3, 32, 32), onnx_path=tmp_path / "model.onnx", threads=1)
    small.compress()
    assert small.inference(photo(32))[0].shape == (1, 3, 64, 64)
    assert module.names().count("build_serialized_network") == 1
    with caplog.at_level(logging.WARNING):
        assert small.inference(torch.zeros(2, 3, 40, 6))[0].shape == (2, 3, 80, 12)
    assert caplog.messages == ["building the engine anew for inputs of (1, 3, 8, 6) to (2, 3, 40, 32)"]
    assert module.arguments("set_shape")[1:] == ((1, 3, 8, 6), (2, 3, 40, 6), (2, 3, 40, 32))
    assert module.names().count("build_serialized_network") == 2
    small.export_quantized_model(tmp_path / "model.plan")
    loaded = ModelSpeedupTensorRT(network, (1, 3, 32, 32))
    loaded.load_quantized_model(tmp_path / "model.plan")
    with pytest.raises(ExportError, match=r"this engine takes \(1, 3, 8, 6\) to \(2, 3, 40, 32\); build it with other"):
        loaded.inference(photo(64))
    loaded.load_quantized_model(tmp_path / "model.onnx")
    assert loaded.inference(photo(64))[0].shape == (1, 3, 128, 128)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str, *args: Any) -> Any:
        if name == "tensorrt":
            raise ImportError("No module named 'tensorrt'")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    speedup = speedup_of(edsr("pams", 4), tmp_path)
    for use in (
        speedup.compress,
        lambda: speedup.load_quantized_model("x"),
        lambda: speedup.compress_with_calibrator([]),
    ):
        with pytest.raises(ExportError) as error:
            use()
        assert str(error.value) == (
            "the package 'tensorrt' cannot be imported (No module named 'tensorrt'); "
            'install it with: pip install "srq-nni[tensorrt]"'
        )
    assert not (tmp_path / "model.onnx").exists()


def test_without_a_gpu_and_with_an_old_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeTensorRT(VERSIONS[2])
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ExportError) as error:
        speedup_of(edsr("pams", 4), tmp_path).compress()
    assert str(error.value) == (
        "TensorRT builds and runs engines on an NVIDIA GPU, and torch sees none here; on a machine without one "
        "write the file with export_onnx(..., engine='tensorrt') and build the engine where it will run, "
        "or use OpenVINO"
    )
    assert export_onnx(edsr("pams", 4), tmp_path / "model.onnx", "tensorrt").path.exists()  # as the sentence says
    module.__version__ = "8.4.3.1"
    with pytest.raises(
        ExportError, match=r"^tensorrt 8\.4\.3\.1 is too old; install 8\.6, 10 or 11, such as with: pip"
    ):
        speedup_of(edsr("pams", 4), tmp_path).compress()
