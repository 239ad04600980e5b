"""What a network will be, before it is trained or run: bits, coverage, size, operations, engines, training time."""

from srq_nni.summary.network import summarize_network
from srq_nni.summary.onnx_graph import summarize_onnx
from srq_nni.summary.options_file import summarize_checkpoint, summarize_options
from srq_nni.summary.rows import Convolution, EngineVerdict, Summary, TrainingTime

__all__ = [
    "Convolution",
    "EngineVerdict",
    "Summary",
    "TrainingTime",
    "summarize_checkpoint",
    "summarize_network",
    "summarize_onnx",
    "summarize_options",
]
