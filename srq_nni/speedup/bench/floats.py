"""The float network behind a file with Q/DQ pairs, to be measured beside it."""

from __future__ import annotations

from typing import Any

from srq_nni.errors import ExportError
from srq_nni.speedup.lazy import import_or_explain


def has_quantizers(proto: Any) -> bool:
    """Whether an ``onnx.ModelProto`` has Q/DQ pairs."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in proto.graph.node)


def without_quantizers(proto: Any) -> Any:
    """Return a copy of an ``onnx.ModelProto`` that computes in floating point.

    Weights keep the values of their codes; activations are neither rounded nor limited. For timing: the image differs.

    Raises:
        ExportError: if a gate works on the codes, so that roundings would stay behind.
    """
    copy = type(proto)()
    copy.CopyFrom(proto)
    _Eraser(copy).erase()
    return copy


class _Eraser:
    def __init__(self, proto: Any) -> None:
        self.graph = proto.graph
        self.numpy_helper = import_or_explain("onnx", "onnx").numpy_helper
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.producers = {output: node for node in self.graph.node for output in node.output}
        self.names: dict[str, str] = {}  # of a tensor that goes -> the one that takes its place
        self.codes: set[str] = set()

    def erase(self) -> None:
        kept = [node for node in self.graph.node if not self._is_part_of_a_quantizer(node)]
        for node in kept:
            for position, name in enumerate(node.input):
                node.input[position] = self.names.get(name, name)
        for output in self.graph.output:
            if output.name in self.names:
                kept.append(
                    import_or_explain("onnx", "onnx").helper.make_node(
                        "Identity", [self.names[output.name]], [output.name], name=output.name
                    )
                )
        self._keep_what_is_read(kept)
        if any(node.op_type == "Round" for node in self.graph.node):
            raise ExportError(
                "the file rounds by a gate, and its float network cannot be read from it; give the checkpoint"
            )

    def _is_part_of_a_quantizer(self, node: Any) -> bool:
        """Note what takes the place of the output of ``node``, if it is part of a quantizer."""
        source, output = next(iter(node.input), ""), node.output[0]
        if node.op_type == "DequantizeLinear" and source in self.constants:
            self._store_float(node)
            return True
        if node.op_type == "QuantizeLinear":
            self.names[output] = self._before(source)
            self.codes.add(output)
            return True
        if source not in self.codes:
            return False
        if node.op_type in ("Clip", "DequantizeLinear"):
            self.names[output] = self.names.get(source, source)
            if node.op_type == "Clip":
                self.codes.add(output)
            return True
        self.codes.update(node.output)  # a DepthToSpace of codes
        return False

    def _before(self, tensor: str) -> str:
        """Return what a quantizer read: the tensor before its Div and Round, or before its float Clip."""
        node = self.producers.get(tensor)
        if node is not None and node.op_type == "Round":
            before = self.producers.get(node.input[0])
            if before is not None and before.op_type == "Div" and before.input[1] in self.constants:
                tensor = before.input[0]
        elif node is not None and node.op_type == "Clip" and node.name.endswith("_clip"):
            tensor = node.input[0]
        return self.names.get(tensor, tensor)

    def _store_float(self, node: Any) -> None:
        arrays = [self.numpy_helper.to_array(self.constants[name]).astype("float32") for name in node.input]
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        shape = [-1 if position == axis else 1 for position in range(arrays[0].ndim)]
        scale, zero = (array.reshape(shape) if array.size > 1 else array for array in (*arrays[1:], arrays[1] * 0)[:2])
        value = ((arrays[0] - zero) * scale).astype("float32")
        self.graph.initializer.append(self.numpy_helper.from_array(value, node.output[0]))

    def _keep_what_is_read(self, nodes: list[Any]) -> None:
        read = {output.name for output in self.graph.output}
        kept: list[Any] = []
        for node in reversed(nodes):
            if read & set(node.output):
                kept.insert(0, node)
                read.update(node.input)
        weights = [tensor for tensor in self.graph.initializer if tensor.name in read]
        del self.graph.node[:]
        self.graph.node.extend(kept)
        del self.graph.initializer[:]
        self.graph.initializer.extend(weights)
