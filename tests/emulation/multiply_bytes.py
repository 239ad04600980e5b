"""Fail unless ONNX Runtime multiplies a matrix of uint8 by one of int8 as integers do: (64, 256) by (256, 64)."""

from __future__ import annotations

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(0)
left = random.integers(0, 256, (64, 256)).astype(np.uint8)
right = random.integers(-128, 128, (256, 64)).astype(np.int8)
graph = helper.make_graph(
    [helper.make_node("MatMulInteger", ["left", "right"], ["sums"])],
    "product",
    [helper.make_tensor_value_info("left", TensorProto.UINT8, left.shape)],
    [helper.make_tensor_value_info("sums", TensorProto.INT32, (64, 64))],
    [numpy_helper.from_array(right, "right")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
(found,) = session.run(None, {"left": left})
np.testing.assert_array_equal(found, left.astype(np.int32) @ right.astype(np.int32))
