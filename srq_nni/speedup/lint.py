"""Which convolutions of an ONNX file will run in integers on an engine, and why the others will not.

It reads the graph and runs nothing. ``precision_report()`` of a speedup counts what an engine then really ran.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from srq_nni.speedup.engine_rules import EngineRules, get_rules
from srq_nni.speedup.lazy import import_or_explain
from srq_nni.speedup.lint_carriers import before_carriers, rectified
from srq_nni.speedup.lint_rules import ACCEPTED, CONVOLUTIONS, PRODUCTS, QUANTIZED_NODES, Acceptance
from srq_nni.speedup.onnx_file import read_onnx
from srq_nni.speedup.onnx_graph import Grid, OnnxGraph
from srq_nni.speedup.table import text_table

MARK_OF_WEIGHTS = ".weight_q"


@dataclass(frozen=True)
class Verdict:
    """What an engine will do with one convolution or matrix product.

    Attributes:
        node: name of the node in the graph, or of its output if it has none; files of others may repeat it.
        output: its first output, which no other node of the graph has.
        layer: module path, empty for a node whose weight was not quantized by srq-nni.
        reason: why it will not run in integers; empty if it will.
        note: what a reader should know although it will; empty mostly.
        kind: type of the node, such as ``Conv``.
    """

    node: str
    output: str
    layer: str
    reason: str
    note: str = ""
    kind: str = "Conv"

    @property
    def runs_in_integers(self) -> bool:
        """Whether both operands are integers that the engine multiplies as such."""
        return not self.reason


@dataclass(frozen=True)
class LintReport:
    """The verdicts on a file; ``str()`` is a table.

    Attributes:
        engine: the engine it was read for.
        verdicts: one for each convolution and matrix product with a constant weight, in the order of the graph.
        notes: one sentence for each thing about the whole file.
    """

    engine: str
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()

    @property
    def integer_convolutions(self) -> int:
        """How many convolutions will run in integers."""
        return sum(verdict.runs_in_integers for verdict in self._convolutions())

    @property
    def convolutions(self) -> int:
        """How many convolutions there are."""
        return len(self._convolutions())

    def _convolutions(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.kind in CONVOLUTIONS]

    def __str__(self) -> str:
        rows = [
            (
                verdict.layer or verdict.node,
                "int8" if verdict.runs_in_integers else "float",
                verdict.reason or verdict.note,
            )
            for verdict in self.verdicts
        ]
        lines = [
            text_table(("layer", "runs in", "because"), rows),
            f"{self.engine}: {self.integer_convolutions} of {self.convolutions} convolutions will run in integers",
            *self.notes,
        ]
        return "\n".join(lines)


def lint_onnx(path: str | os.PathLike[str], engine: str = "openvino") -> LintReport:
    """Say which convolutions of an ONNX file will run in integers on ``engine``, and for each other one why not.

    The file may come from any tool that writes QuantizeLinear / DequantizeLinear pairs. Nothing is run, and the engine
    need not be installed; the package ``onnx`` has to be.

    Args:
        path: ONNX file.
        engine: ``openvino``, ``onnxruntime`` or ``tensorrt``.

    Raises:
        ExportError: for an unknown engine or a file that is no ONNX file, or without the package ``onnx``.
    """
    rules = get_rules(engine)
    proto = import_or_explain("onnx", "onnx").load_model_from_string(read_onnx(path))
    accepted = ACCEPTED[rules.name]
    opset = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    notes = [rules.note] if rules.note else []
    if accepted.newest_opset is not None and opset > accepted.newest_opset:
        notes.append(f"Its opset is {opset}; the oldest supported {engine} reads up to {accepted.newest_opset}.")
    return LintReport(engine, lint_graph(proto, rules), tuple(notes))


def lint_graph(proto: Any, rules: EngineRules) -> tuple[Verdict, ...]:
    """Return the verdict on every convolution, and matrix product with a constant weight, in the order of the graph.

    Args:
        proto: ``onnx.ModelProto`` with explicit Q/DQ pairs.
        rules: of the engine.
    """
    return tuple(_Linter(OnnxGraph(proto.graph), ACCEPTED[rules.name]).verdicts())


class _Linter:
    def __init__(self, graph: OnnxGraph, accepted: Acceptance) -> None:
        self.graph, self.accepted, self.engine = graph, accepted, accepted.name

    def verdicts(self) -> Iterator[Verdict]:
        for node in self.graph.nodes:
            name = node.name or node.output[0]
            if node.op_type in QUANTIZED_NODES:
                yield Verdict(name, node.output[0], "", self._quantized_node(node.op_type), kind=node.op_type)
            elif node.op_type in CONVOLUTIONS or (node.op_type in PRODUCTS and self._has_constant_weight(node)):
                reason = next(filter(None, self._reasons(node)), "")
                note = "" if reason else next(filter(None, self._notes(node)), "")
                yield Verdict(name, node.output[0], self._layer(node), reason, note, node.op_type)

    def _quantized_node(self, kind: str) -> str:
        if kind in self.accepted.runs:
            return ""
        done = "computes it in floating point" if kind in self.accepted.reads else "does not read it"
        return f"it is a {kind}, and {self.engine} {done}"

    def _reasons(self, node: Any) -> Iterator[str]:
        """Yield every reason there is, in the order of the data; empty ones count for nothing."""
        yield from self._input(node)
        yield from self._weight(node)
        if len(node.input) > 2 and not self.accepted.reads_int32_bias and self._dequantizer(node.input[2]) is not None:
            yield f"its bias is dequantized from int32, and {self.engine} takes a float constant"
        if node.op_type == "ConvTranspose" and not self.accepted.transposed:
            yield f"{self.engine} has no integer kernel for ConvTranspose"
        if self.accepted.needs_output_quantizer and node.op_type == "Conv":
            yield self._behind(node)

    def _input(self, node: Any) -> Iterator[str]:
        tensor, carried = before_carriers(self.graph, node.input[0], self.accepted)
        dequantizer = self._dequantizer(tensor)
        between, quantizer = self._writer(dequantizer)
        if dequantizer is None or quantizer is None:
            yield "its input is not quantized"
            return
        if "Pad" in carried and "Pad" not in self.accepted.carriers:
            yield "a Pad stands between its quantizer and it"
        grid = self.graph.grid(dequantizer)
        yield rectified(carried, grid)
        forbidden = [kind for kind in between if kind not in self.accepted.integer_operations]
        if forbidden:
            yield f"a {forbidden[0]} of integers stands before it, and {self.engine} takes none between Q and DQ"
        if between:
            yield self._between(between[0], grid, "before")
        if not grid.is_constant and not self.accepted.computed_scales:
            yield f"the scale of its input is computed for each image, and {self.engine} takes constants"
        if not grid.is_per_tensor:
            yield f"its input has a scale for each channel, and {self.engine} takes one for all"
        if grid.dtype not in self.accepted.activations:
            yield f"its input is {grid.dtype}, and {self.engine} takes {' or '.join(self.accepted.activations)}"
        if not self.accepted.zero_points:
            yield self._zero_point("its input", grid)
        times = self.graph.uses(node.input[0]) if carried else self._reads(quantizer)
        yield self._shared("its input", times, grid)

    def _weight(self, node: Any) -> Iterator[str]:
        dequantizer = self._dequantizer(node.input[1])
        if dequantizer is None:
            if not (self.accepted.quantizes_weights and self.graph.constant(node.input[1]) is not None):
                yield "its weight is not quantized"
            return
        if self._constant_behind(dequantizer) is None:
            yield "its weight is not a constant"
            return
        grid = self.graph.grid(dequantizer)
        if not grid.is_constant:
            yield f"the scale of its weight is computed for each image, and {self.engine} takes constants"
        if grid.dtype not in self.accepted.weights:
            yield f"its weight is {grid.dtype}, and {self.engine} multiplies {' or '.join(self.accepted.weights)}"
        if not self.accepted.weight_zero_points:
            yield self._zero_point("its weight", grid)

    def _zero_point(self, what: str, grid: Grid) -> str:
        if grid.zero_point is None or not np.any(grid.zero_point):
            return ""
        found = np.unique(grid.zero_point)
        shown = str(found[0]) if len(found) == 1 else "not 0"
        return f"the zero point of {what} is {shown}, and {self.engine} takes 0 only"

    def _behind(self, node: Any) -> str:
        """Return why the output of a convolution does not go straight into one quantizer."""
        rule = f"{self.engine} runs a convolution in integers only if its output is quantized"
        cut, following = self._following(node)
        if following and any(self.graph.is_output(each.output[0]) for each in (node, *cut)):
            return f"{rule}, and this one's is an output of the network, too"
        kinds = sorted({reader.op_type for reader in following})
        if kinds != ["QuantizeLinear"]:
            return f"{rule}, and this one's goes to {', '.join(kinds) or 'the output of the network'}"
        if len(following) > 1:
            return f"{rule}, and {len(following)} quantizers read this one's"
        grid = self.graph.grid(following[0])
        if any(reader.op_type == "Clip" for reader in self.graph.readers(following[0].output[0])):
            clipped = self._between("Clip", grid, "behind")
            if clipped:
                return clipped
        stay = next((f"{rule}, and {stays}" for node in cut if (stays := self._stays(node, grid))), "")
        return stay or self._shared("its output", self._reads(following[0]), grid)

    def _reads(self, quantizer: Any) -> int:
        """Return how often the codes of a quantizer are read, once they are dequantized or as they are."""
        codes = quantizer.output[0]
        pairs = [node for node in self.graph.readers(codes) if node.op_type == "DequantizeLinear"]
        return self.graph.is_output(codes) + sum(self.graph.uses(pair.output[0]) for pair in pairs)

    def _shared(self, what: str, times: int, grid: Grid) -> str:
        """Return that codes are read more than once where this keeps the engine from multiplying them."""
        if times < 2 or grid.dtype not in ("int8", "uint8") or grid.dtype in self.accepted.shared:
            return ""
        allowed = " or ".join(self.accepted.shared)
        return f"{what} is {grid.dtype} and read {times} times, and {self.engine} takes such codes as {allowed} only"

    def _between(self, kind: str, grid: Grid, where: str) -> str:
        moved = self.accepted.moved_codes
        if not moved or grid.dtype in moved:
            return ""
        return f"a {kind} of {grid.dtype} stands {where} it, and {self.engine} takes one of {moved[0]} only"

    def _stays(self, node: Any, grid: Grid) -> str:
        """Return what keeps a ReLU or a float Clip from being taken over by the quantizer after it."""
        if grid.dtype not in ("int8", "uint8") or not grid.is_constant or not grid.is_per_tensor:
            return f"the grid after its {node.op_type} is not a constant"
        assert grid.scale is not None and grid.zero_point is not None
        scale, zero, info = float(grid.scale.flat[0]), int(grid.zero_point.flat[0]), np.iinfo(grid.dtype)
        if node.op_type == "Relu":
            return (
                "" if zero == info.min else f"its ReLU stays, as {grid.dtype} with zero point {zero} has codes below 0"
            )
        low, high = (self.graph.constant(name) if name else None for name in (*node.input[1:3], "", "")[:2])
        ends = ((info.min - zero) * scale, (info.max - zero) * scale)
        if low is not None and high is not None and low <= ends[0] and ends[1] <= high:
            return ""
        return f"a float Clip stands between; limit the codes of {grid.dtype} instead"

    def _notes(self, node: Any) -> Iterator[str]:
        if self.accepted.quantizes_weights and self._dequantizer(node.input[1]) is None:
            yield f"its weight is float in the file; {self.engine} rounds it to int8 by itself"
        if self.engine != "tensorrt" or node.op_type != "Conv":
            return
        weight = self._dequantizer(node.input[1])
        if weight is not None and self.graph.constant(weight.input[0]) is not None:
            yield "its weight is an int8 constant; the parser documents int8 behind a QuantizeLinear only"
        if any(reader.op_type == "QuantizeLinear" and self._reaches_add(reader) for reader in self._following(node)[1]):
            yield (
                "its output is quantized before an Add, which keeps TensorRT from fusing the two; "
                "train with wiring: tensorrt, which leaves that quantizer out"
            )

    def _following(self, node: Any) -> tuple[list[Any], list[Any]]:
        """Return the ReLU and Clip nodes right after ``node``, and the nodes that read what comes out of them."""
        cut: list[Any] = []
        following = self.graph.readers(node.output[0])
        while len(following) == 1 and following[0].op_type in ("Relu", "Clip"):
            cut.append(following[0])
            following = self.graph.readers(cut[-1].output[0])
        return cut, following

    def _reaches_add(self, quantizer: Any) -> bool:
        pairs = self.graph.readers(quantizer.output[0])
        return any(reader.op_type == "Add" for pair in pairs for reader in self.graph.readers(pair.output[0]))

    def _layer(self, node: Any) -> str:
        dequantizer = self._dequantizer(node.input[1])
        stored = dequantizer.input[0] if dequantizer is not None else ""
        name, mark, _ = stored.partition(MARK_OF_WEIGHTS)
        return name if mark else ""

    def _has_constant_weight(self, node: Any) -> bool:
        dequantizer = self._dequantizer(node.input[1])
        source = node.input[1] if dequantizer is None else dequantizer.input[0]
        return self.graph.constant(source) is not None or self._constant_behind(dequantizer) is not None

    def _dequantizer(self, tensor: str) -> Any:
        node = self.graph.producer(tensor)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def _writer(self, dequantizer: Any) -> tuple[list[str], Any]:
        """Return the kinds of nodes between a DequantizeLinear and its QuantizeLinear, and that."""
        between: list[str] = []
        node = None if dequantizer is None else self.graph.producer(dequantizer.input[0])
        while node is not None and node.op_type in ("Clip", "DepthToSpace", "Reshape", "Transpose"):
            between.append(node.op_type)
            node = self.graph.producer(node.input[0])
        return between, node if node is not None and node.op_type == "QuantizeLinear" else None

    def _constant_behind(self, dequantizer: Any) -> np.ndarray | None:
        """Return the constant that a weight is dequantized from, through a QuantizeLinear at most."""
        if dequantizer is None:
            return None
        stored = self.graph.constant(dequantizer.input[0])
        quantizer = self.graph.producer(dequantizer.input[0])
        if stored is None and quantizer is not None and quantizer.op_type == "QuantizeLinear":
            return self.graph.constant(quantizer.input[0])
        return stored
