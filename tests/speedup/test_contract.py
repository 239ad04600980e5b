"""NNI's speedup contract: its base class, its methods, and calibration from what users call a calibrator."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import srq_nni
from srq_nni.errors import ExportError
from srq_nni.quantization.layers import activation_quantizers, calibrate
from srq_nni.speedup import ModelSpeedupONNXRuntime, ModelSpeedupOpenVINO, ModelSpeedupTensorRT, integer_simulator
from srq_nni.speedup.calibrator import calibration_batches
from srq_nni.speedup.contract import NAME, BaseModelSpeedup
from tests.speedup.networks import difference, edsr, photo

CPU_CLASSES = (ModelSpeedupOpenVINO, ModelSpeedupONNXRuntime)
CLASSES = (*CPU_CLASSES, ModelSpeedupTensorRT)
WANTED = (
    "; give an iterable of float tensors (N, C, H, W), such as a DataLoader, "
    "or a calibrator with the images as `data` and a `batch_size`"
)


class NNICalibrator:
    """The attributes of NNI's ``Calibrator``, which needs pycuda."""

    def __init__(self, training_data: np.ndarray, batch_size: int) -> None:
        self.data, self.batch_size = training_data, batch_size


@pytest.mark.parametrize("cls", CLASSES)
def test_every_engine_is_a_base_model_speedup_of_nni(cls: type) -> None:
    from nni.compression.quantization_speedup.backend import BaseModelSpeedup as OfNNI

    assert issubclass(cls, OfNNI)
    assert OfNNI is BaseModelSpeedup
    assert Path(sys.modules[NAME].__file__ or "").parts[-3:] == ("compression", "quantization_speedup", "backend.py")


def test_a_later_import_of_nnis_package_finds_the_same_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """NNI's package, which needs tensorrt and pycuda, is imported with both of them faked."""
    pycuda, driver = types.ModuleType("pycuda"), types.ModuleType("pycuda.driver")
    tensorrt: Any = types.ModuleType("tensorrt")
    tensorrt.Logger, tensorrt.int8, tensorrt.float16 = object, "int8", "float16"
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    monkeypatch.setitem(sys.modules, "pycuda", pycuda)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setitem(sys.modules, "pycuda.autoinit", types.ModuleType("pycuda.autoinit"))
    before = set(sys.modules)
    try:
        from nni.compression.quantization_speedup import ModelSpeedupTensorRT

        assert issubclass(ModelSpeedupTensorRT, BaseModelSpeedup)
    finally:
        for name in set(sys.modules) - before:
            if name.startswith("nni.compression.quantization_speedup"):
                del sys.modules[name]


def test_importing_srq_nni_or_an_engine_imports_neither_nni_nor_tensorrt() -> None:
    code = (
        "import srq_nni, sys; engine = srq_nni.ModelSpeedupOpenVINO; "
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'nni', 'tensorrt', 'openvino', 'onnxruntime'}), "
        "'nni.compression' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['nni'] False"


@pytest.mark.parametrize(
    "calibrator",
    [
        NNICalibrator(photo(48).repeat(3, 1, 1, 1).numpy(), 2),
        [photo(48), photo(48), photo(48)],
        ({"lq": photo(48)} for _ in range(3)),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(photo(48).repeat(3, 1, 1, 1)), batch_size=3),
        [photo(48).numpy().astype(np.float64)],
    ],
    ids=["nni", "tensors", "basicsr", "loader", "array"],
)
def test_batches_of_every_kind_of_calibrator(calibrator: Any) -> None:
    batches = list(calibration_batches(calibrator))
    assert all(batch.dtype == torch.float32 and batch.dim() == 4 for batch in batches)
    assert torch.equal(batches[0][:1], photo(48))
    if isinstance(calibrator, NNICalibrator):
        assert [len(batch) for batch in batches] == [2, 1]


@pytest.mark.parametrize(
    ("calibrator", "message"),
    [
        (7, "calib: an object of type 'int' gives no images that torch can read"),
        ([], "calib: an object of type 'list' without a single batch is not allowed"),
        ([torch.zeros(3, 8, 8)], "calib: a tensor of shape (3, 8, 8) and dtype torch.float32 is not a batch of images"),
        ([torch.zeros(1, 3, 8, 8, dtype=torch.uint8)], "calib: a tensor of shape (1, 3, 8, 8) and dtype torch.uint8"),
        ([{"gt": photo()}], "calib: an object of type 'NoneType' is not a batch of images"),
    ],
)
def test_what_is_no_calibrator(calibrator: Any, message: str) -> None:
    with pytest.raises(ExportError) as error:
        list(calibration_batches(calibrator))
    assert str(error.value).startswith(message) and str(error.value).endswith(WANTED)


@pytest.mark.parametrize("cls", CPU_CLASSES)
def test_a_calibrator_sets_the_bounds_and_leaves_the_model_alone(cls: Any, tmp_path: Path) -> None:
    pytest.importorskip(cls.engine)
    network = edsr("pams", 6)
    with torch.no_grad():
        for _, quantizer in activation_quantizers(network):
            quantizer.bounds()[0].mul_(3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    speedup = cls(network, (1, 3, 32, 32), onnx_path=tmp_path / "model.onnx", threads=1)
    speedup.compress_with_calibrator(NNICalibrator(photo(64).numpy(), 1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    calibrate(network, [photo(64)])
    with torch.no_grad():
        expected = integer_simulator(network, engine=cls.engine)(photo(32))
    assert difference(speedup.inference(photo(32), reset_context=True)[0], expected).max() < 0.01


def test_a_calibrator_needs_quantizers(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    speedup = ModelSpeedupOpenVINO(nn.Sequential(nn.Conv2d(3, 3, 3)), (1, 3, 32, 32))
    with pytest.raises(ExportError) as error:
        speedup.compress_with_calibrator([photo()])
    assert str(error.value) == (
        "a Sequential without quantizers has no bounds to calibrate; quantize it first, such as "
        "srq_nni.PAMSQuantizer(model, srq_nni.config_list(model, 'pams', 8)).quantized_network()"
    )
    with pytest.raises(ExportError, match=r"^'model\.onnx' is an ONNX file, whose scales are constants; give the net"):
        ModelSpeedupOpenVINO("model.onnx", (1, 3, 32, 32)).compress_with_calibrator([photo()])


def test_the_way_out_that_the_error_names(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from basicsr.archs.edsr_arch import EDSR

    torch.manual_seed(0)
    model = EDSR(3, 3, num_feat=8, num_block=1, upscale=2, rgb_mean=(0, 0, 0))
    network = srq_nni.PAMSQuantizer(model, srq_nni.config_list(model, "pams", 8)).quantized_network()
    speedup = ModelSpeedupOpenVINO(network, (1, 3, 32, 32), onnx_path=tmp_path / "model.onnx", threads=1)
    speedup.compress_with_calibrator([photo(64)])
    assert speedup.precision_report().integer_convolutions == 2
