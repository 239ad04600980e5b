"""From a trained quantized network to an integer ONNX file, and the engines that run it."""

from srq_nni.speedup.certificate import Certificate, CertificateRow, certify
from srq_nni.speedup.engine import PrecisionReport
from srq_nni.speedup.export import ExportReport, LayerReport, export_float_onnx, export_onnx
from srq_nni.speedup.flat_config import nni_tensorrt_config
from srq_nni.speedup.lint import LintReport, Verdict, lint_onnx
from srq_nni.speedup.onnxruntime import ModelSpeedupONNXRuntime
from srq_nni.speedup.openvino import ModelSpeedupOpenVINO
from srq_nni.speedup.simulator import integer_simulator
from srq_nni.speedup.tensorrt import ModelSpeedupTensorRT
from srq_nni.speedup.ties import Explanation, OtherCodes, explain_difference

__all__ = [
    "Certificate",
    "CertificateRow",
    "Explanation",
    "ExportReport",
    "LayerReport",
    "LintReport",
    "ModelSpeedupONNXRuntime",
    "ModelSpeedupOpenVINO",
    "ModelSpeedupTensorRT",
    "OtherCodes",
    "PrecisionReport",
    "Verdict",
    "certify",
    "explain_difference",
    "export_float_onnx",
    "export_onnx",
    "integer_simulator",
    "lint_onnx",
    "nni_tensorrt_config",
]
