"""What the engines compute where it is not what the file says: smallest graphs beside exact integer arithmetic.

These are the causes in docs/exactness.md. If one of these tests fails, an engine has changed, and that page with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper

from srq_nni.speedup import bfloat16_tail
from srq_nni.speedup.machine import cpu_flags
from srq_nni.speedup.openvino import core as openvino_core
from srq_nni.speedup.openvino import has_bfloat16
from tests.speedup.handmade import CHANNELS, GraphWriter

LIMIT = 7  # largest code of 4 bits
INPUT, MIDDLE, BRANCH, SUM, WEIGHT = map(float, np.array([0.0313, 0.04, 0.047, 0.0533, 0.0047], np.float32))
Array = np.ndarray[Any, np.dtype[Any]]


def integer_convolution(codes: Array, weight: Array, padding: int = 1) -> Array:
    """Convolve codes exactly, in float64."""
    tensors = (torch.from_numpy(array.astype(np.float64)) for array in (codes, weight))
    return np.asarray(F.conv2d(*tensors, padding=padding).numpy())


class Block:
    """A residual block in wiring ``deploy``: a quantizer on each input, on the branch and on the sum."""

    def __init__(self, zero: int, *, rounds: bool) -> None:
        self.write = GraphWriter()
        self.dtype = np.uint8 if zero else np.int8
        self.zero, self.rounds = zero, rounds
        shape = (CHANNELS, CHANNELS, 3, 3)
        self.weights = [2 * self.write.random.integers(-3, 4, shape, np.int8) for _ in range(2)]
        self.biases = [np.linspace(0.01, 0.2, CHANNELS, dtype=np.float32) for _ in range(2)]

    def quantize(self, source: str, name: str, scale: float) -> str:
        write = self.write
        step = write.constant(f"{name}_step", np.float32(scale))
        zero = write.constant(f"{name}_zero", np.array(self.zero, self.dtype))
        unit = step
        if self.rounds:
            source = write.node("Round", [write.node("Div", [source, step], f"{name}_div")], f"{name}_round")
            unit = write.constant(f"{name}_unit", np.float32(1))
        codes = write.node("QuantizeLinear", [source, unit, zero], f"{name}_q")
        limits = [write.constant(f"{name}_{end}", np.array(self.zero + end, self.dtype)) for end in (-LIMIT, LIMIT)]
        codes = write.node("Clip", [codes, *limits], f"{name}_clip")
        return write.node("DequantizeLinear", [codes, step, zero], f"{name}_dq")

    def convolve(self, source: str, name: str, weight: Array, bias: Array, scale: float) -> str:
        write, pad = self.write, weight.shape[2] // 2
        stored = [write.constant(f"{name}_w", weight), write.constant(f"{name}_s", np.float32(scale))]
        zero = write.constant(f"{name}_z", np.array(0, np.int8))
        dequantized = write.node("DequantizeLinear", [*stored, zero], f"{name}_wdq")
        inputs = [source, dequantized, write.constant(f"{name}_b", bias)]
        return write.node("Conv", inputs, name, pads=[pad] * 4)

    def model(self) -> Any:
        """Return the model; a last convolution by 1 shows the codes of the sum."""
        skip = self.quantize("x", "input", INPUT)
        middle = self.convolve(skip, "first", self.weights[0], self.biases[0], WEIGHT)
        middle = self.quantize(self.write.node("Relu", [middle], "rectified"), "middle", MIDDLE)
        branch = self.convolve(middle, "second", self.weights[1], self.biases[1], WEIGHT)
        total = self.write.node("Add", [self.quantize(branch, "branch", BRANCH), skip], "total")
        one = 2 * np.eye(CHANNELS, dtype=np.int8)[:, :, None, None]
        codes = self.quantize(total, "sum", SUM)
        return self.write.model(self.convolve(codes, "shown", one, np.full(CHANNELS, 1e-3, np.float32), 0.5))

    def codes(self, x: Array, *, branch_rounded: bool) -> Array:
        """Return the codes of the sum in exact arithmetic, with or without the rounding of the branch."""

        def rounded(value: Array, scale: float) -> Array:
            return np.asarray(np.clip(np.rint(value / scale), -LIMIT, LIMIT))

        bias = [value[None, :, None, None] for value in self.biases]
        skip = rounded(x, INPUT)
        middle = integer_convolution(skip, self.weights[0]) * INPUT * WEIGHT + bias[0]
        middle = rounded(np.maximum(middle, 0), MIDDLE)
        branch = integer_convolution(middle, self.weights[1]) * MIDDLE * WEIGHT + bias[1]
        if branch_rounded:
            branch = rounded(branch, BRANCH) * BRANCH
        return rounded(branch + skip * INPUT, SUM)


def run_openvino(model: Any, x: Array) -> Array:
    pytest.importorskip("openvino")
    core = openvino_core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return np.asarray(core.compile_model(core.read_model(model.SerializeToString()), "CPU", config)(x)[0])


@pytest.mark.parametrize("rounds", [False, True], ids=["plain", "div_and_round"])
@pytest.mark.parametrize("zero", [0, 128])
def test_openvino_drops_the_rounding_of_a_branch_unless_div_and_round_stand_apart(zero: int, rounds: bool) -> None:
    """Codes are those of exact arithmetic with Div and Round, and of arithmetic without the branch's Q otherwise.

    The zero point has no part in it.
    """
    block = Block(zero, rounds=rounds)
    x = np.random.default_rng(1).normal(0, 0.1, (1, CHANNELS, 24, 24)).astype(np.float32)
    found = np.rint((run_openvino(block.model(), x) - 1e-3) / SUM)
    exact, without = (block.codes(x, branch_rounded=rounded) for rounded in (True, False))
    assert (exact != without).mean() > 0.1, "the two can be told apart"
    if rounds:
        assert np.array_equal(found, exact)
    else:  # its own rounding moves a value within 2e-5 of a tie
        assert (found != without).mean() < 0.001 < 0.1 < (found != exact).mean()


def run_onnxruntime(model: Any, x: Array) -> Array:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def test_onnxruntime_multiplies_sums_by_one_rounded_ratio() -> None:
    """Its codes are those of sum x float32(s_x s_w / s_y), all of them; (sum s_x s_w) / s_y moves some ties by one."""
    random = np.random.default_rng(0)
    moved = 0
    for _ in range(6):
        write = GraphWriter()
        s_x, s_w = (np.float32(scale) for scale in random.uniform(0.001, 0.02, 2))
        s_y = np.float32(float(s_x) * float(s_w) * 2 * random.integers(300, 900))  # many sums lie on ties
        weight = random.integers(-127, 128, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8)
        zeros = [write.constant("zero_w", np.int8(0)), write.constant("zero", np.uint8(128))]
        steps = [write.constant(f"s{number}", scale) for number, scale in enumerate((s_x, s_w, s_y))]
        dequantized = write.node("DequantizeLinear", ["x", steps[0], zeros[1]], "x_dq")
        kernel = write.node("DequantizeLinear", [write.constant("w", weight), steps[1], zeros[0]], "w_dq")
        codes = write.node(
            "QuantizeLinear", [write.node("Conv", [dequantized, kernel], "y"), steps[2], zeros[1]], "out"
        )
        shape = [1, CHANNELS, 50, 50]
        given = helper.make_tensor_value_info("x", TensorProto.UINT8, shape)
        taken = helper.make_tensor_value_info(codes, TensorProto.UINT8, None)
        graph = helper.make_graph(write.nodes, "one", [given], [taken], write.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
        x = random.integers(0, 256, shape).astype(np.uint8)
        found = run_onnxruntime(model, x).astype(int) - 128

        sums = integer_convolution(x.astype(np.float64) - 128, weight, 0).astype(np.float32)
        ratio = np.float32(np.float32(s_x * s_w) / s_y)
        assert np.array_equal(found, np.clip(np.rint(sums * ratio), -128, 127))
        difference = np.abs(found - np.clip(np.rint(sums * np.float32(s_x * s_w) / s_y), -128, 127))
        assert difference.max() <= 1
        moved += int(difference.sum())
    assert moved > 0


@pytest.mark.parametrize("rounded_before", [False, True])
def test_openvino_casts_to_bfloat16_upwards_from_odd_ones_only(rounded_before: bool) -> None:
    """So a mean over many values is lower by a quarter of a step, unless arithmetic has rounded them before.

    On a CPU without bfloat16 and without AVX-512 the Cast does nothing.
    """
    write, random = GraphWriter(), np.random.default_rng(1)
    x = random.normal(0, 1, (1, CHANNELS, 24, 24)).astype(np.float32)
    x *= 10 ** random.uniform(-6, 6, (1, CHANNELS, 1, 1)).astype(np.float32)
    nearest = torch.from_numpy(x).bfloat16().float().numpy()
    if rounded_before:
        write.constant(bfloat16_tail.SPLITTER, np.float32(bfloat16_tail.SPLIT))
        write.nodes += bfloat16_tail._rounding_cast("x")
        cast, expected = "x" + bfloat16_tail.SUFFIX, nearest
    else:
        cast = write.node("Cast", ["x"], "cast", to=TensorProto.BFLOAT16)
        bits = x.view(np.uint32)
        upwards_from_odd = ((bits + ((bits >> 16 & 1) << 15)) >> 16 << 16).view(np.float32)
        lost = (np.abs(x) - np.abs(upwards_from_odd)) / np.exp2(np.floor(np.log2(np.abs(x))) - 7)
        assert lost.mean() == pytest.approx(0.25, abs=0.01)  # of a step
        expected = upwards_from_odd if has_bfloat16() or "avx512f" in cpu_flags() else x
    found = run_openvino(write.model(write.node("Cast", [cast], "back", to=TensorProto.FLOAT)), x)
    assert np.array_equal(found, expected)
