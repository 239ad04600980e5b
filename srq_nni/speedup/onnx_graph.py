"""The nodes of an ONNX graph by what they read and write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from srq_nni.speedup.lazy import import_or_explain


@dataclass(frozen=True)
class Grid:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear.

    Attributes:
        dtype: of the codes, such as ``int8``; empty if the file does not say.
        scale: constant scale, None if it is computed.
        zero_point: constant zero point, None if it is computed.
    """

    dtype: str
    scale: np.ndarray | None
    zero_point: np.ndarray | None

    @property
    def is_constant(self) -> bool:
        """Whether nothing of it depends on the image."""
        return self.scale is not None and self.zero_point is not None

    @property
    def is_per_tensor(self) -> bool:
        """Whether one scale and one zero point hold for all channels."""
        return all(value is None or len(np.unique(value)) == 1 for value in (self.scale, self.zero_point))


class OnnxGraph:
    """Producers, readers and constants of a graph; an Identity counts as the tensor it copies."""

    def __init__(self, graph: Any) -> None:
        onnx = import_or_explain("onnx", "onnx")
        self._names = {value: name.lower() for name, value in onnx.TensorProto.DataType.items()}
        self._to_array = onnx.numpy_helper.to_array
        self.nodes = list(graph.node)
        self.outputs = {output.name for output in graph.output}
        self._tensors = {constant.name: constant for constant in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._tensors[node.output[0]] = node.attribute[0].t
        self._producers = {output: node for node in self.nodes for output in node.output}
        self._readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def resolve(self, tensor: str) -> str:
        """Return the tensor that ``tensor`` is a copy of."""
        node = self._producers.get(tensor)
        while node is not None and node.op_type == "Identity":
            tensor = node.input[0]
            node = self._producers.get(tensor)
        return tensor

    def producer(self, tensor: str) -> Any:
        """Return the node that computes ``tensor``, None for an input or a constant."""
        tensor = self.resolve(tensor)
        return None if tensor in self._tensors else self._producers.get(tensor)

    def readers(self, tensor: str) -> list[Any]:
        """Return the nodes that read ``tensor``, those behind an Identity included."""
        found = []
        for node in self._readers.get(tensor, []):
            found += self.readers(node.output[0]) if node.op_type == "Identity" else [node]
        return found

    def is_output(self, tensor: str) -> bool:
        """Whether the graph returns ``tensor``, or an Identity of it."""
        copies = [node.output[0] for node in self._readers.get(tensor, []) if node.op_type == "Identity"]
        return tensor in self.outputs or any(map(self.is_output, copies))

    def uses(self, tensor: str) -> int:
        """Return how many inputs of nodes ``tensor`` is, and one more if the graph returns it."""
        return len(self.readers(tensor)) + self.is_output(tensor)

    def constant(self, tensor: str) -> np.ndarray | None:
        """Return the value of a constant."""
        proto = self._tensors.get(self.resolve(tensor))
        return None if proto is None else self._to_array(proto)

    def dtype_of_constant(self, tensor: str) -> str:
        """Return the type of a constant, such as ``int8``, empty if it is none."""
        proto = self._tensors.get(self.resolve(tensor))
        return "" if proto is None else self._names[proto.data_type]

    def grid(self, node: Any) -> Grid:
        """Return the grid of a QuantizeLinear or DequantizeLinear."""
        if len(node.input) > 2 and node.input[2]:
            return Grid(
                self.dtype_of_constant(node.input[2]), self.constant(node.input[1]), self.constant(node.input[2])
            )
        given = next((a.i for a in node.attribute if a.name == "output_dtype" and a.i), None)
        stored = self.dtype_of_constant(node.input[0]) if node.op_type == "DequantizeLinear" else ""
        dtype = self._names[given] if given else stored or "uint8"  # the default of ONNX
        return Grid(dtype, self.constant(node.input[1]), np.zeros(()))
