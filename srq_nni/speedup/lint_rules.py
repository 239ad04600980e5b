"""What each engine multiplies in integers.

Measured on OpenVINO 2026.4 and ONNX Runtime 1.31; for TensorRT, which was never run, by NVIDIA's documents.
"""

from __future__ import annotations

from dataclasses import dataclass

QUANTIZED_NODES = ("QLinearConv", "ConvInteger")  # integers by definition, in place of Q/DQ pairs
CONVOLUTIONS = ("Conv", "ConvTranspose", *QUANTIZED_NODES)
PRODUCTS = ("Gemm", "MatMul")
# OpenVINO multiplies what comes out of these as integers if what goes in is.
CARRIERS = ("Pad", "Relu", "DepthToSpace", "AveragePool", "Concat", "MaxPool", "Transpose")


@dataclass(frozen=True)
class Acceptance:
    """Which convolutions with Q/DQ pairs an engine runs in integers.

    Attributes:
        name: as users write it.
        activations: types of input codes it multiplies.
        weights: types of weight codes it multiplies.
        zero_points: whether input codes may have a zero point other than 0.
        weight_zero_points: the same for weights.
        computed_scales: whether the scale of an input may be other than a constant.
        integer_operations: kinds of nodes that may stand between QuantizeLinear and DequantizeLinear.
        moved_codes: types of codes that a node between the two may limit or move.
        shared: types of codes that more than one node may read once they are dequantized. ONNX Runtime makes uint8 of
            int8 codes that one node reads, and has no integer convolutions of int8 codes on x86.
        carriers: kinds of nodes that may stand between DequantizeLinear and the convolution.
        quantizes_weights: it rounds float weights to int8 by itself.
        transposed: whether it has integer kernels for ConvTranspose.
        needs_output_quantizer: a convolution has to end in one quantizer, after a ReLU at most.
        reads: kinds of ``QUANTIZED_NODES`` that it reads; those of ``runs`` it multiplies as integers.
        runs: see ``reads``.
        reads_int32_bias: whether a bias may be dequantized from int32.
        newest_opset: that its oldest supported version reads, None where this does not matter.
    """

    name: str
    activations: tuple[str, ...]
    weights: tuple[str, ...] = ("int8",)
    zero_points: bool = True
    weight_zero_points: bool = False
    computed_scales: bool = False
    integer_operations: tuple[str, ...] = ("Clip", "DepthToSpace")
    moved_codes: tuple[str, ...] = ("int8", "uint8")
    shared: tuple[str, ...] = ("int8", "uint8")
    carriers: tuple[str, ...] = ()
    quantizes_weights: bool = False
    transposed: bool = True
    needs_output_quantizer: bool = False
    reads: tuple[str, ...] = QUANTIZED_NODES
    runs: tuple[str, ...] = ()
    reads_int32_bias: bool = True
    newest_opset: int | None = None


ACCEPTED = {
    "openvino": Acceptance("openvino", ("int8", "uint8", "int4", "uint4"), carriers=CARRIERS, runs=("QLinearConv",)),
    "onnxruntime": Acceptance(
        "onnxruntime",
        ("int8", "uint8"),
        ("int8", "uint8"),
        weight_zero_points=True,
        computed_scales=True,
        moved_codes=("uint8",),
        shared=("uint8",),
        carriers=("MaxPool", "Transpose"),
        quantizes_weights=True,
        transposed=False,
        needs_output_quantizer=True,
        runs=QUANTIZED_NODES,
    ),
    "tensorrt": Acceptance(
        "tensorrt",
        ("int8",),
        zero_points=False,
        integer_operations=(),
        reads=(),
        reads_int32_bias=False,
        newest_opset=17,
    ),
}
