"""Benchmarks of a tiny network: what is in the rows, what beside INT8, and what is said of the machine."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from srq_nni.errors import CheckpointError, ExportError, OptionError
from srq_nni.speedup import ModelSpeedupOpenVINO, export_float_onnx, export_onnx
from srq_nni.speedup.bench import BenchReport, Difference, Row, benchmark, difference, photograph
from srq_nni.speedup.bench.floats import has_quantizers, without_quantizers
from srq_nni.speedup.bench.variants import ORDER
from srq_nni.speedup.machine import Machine, cpu_flags, this_machine
from tests.speedup.architectures import ARCHITECTURES, quantized
from tests.speedup.networks import edsr, photo

onnx = pytest.importorskip("onnx")
pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
BOTH = ("openvino", "onnxruntime")


def test_int8_never_stands_alone() -> None:
    report = benchmark(quantized("EDSR", "pams", 4, "deploy"), engines=BOTH, size=(24, 40), repeats=2)
    assert [(row.engine, row.precision) for row in report.rows] == [
        *(("openvino", name) for name in ORDER),
        *(("onnxruntime", name) for name in ("float32", "bfloat16", "int8 + float32")),
    ]
    for row in report.rows:
        if row.precision == "bfloat16" and row.engine == "onnxruntime":
            assert row.wall is None and row.notes == ("onnxruntime has no bfloat16 convolution for this processor",)
            continue
        assert row.wall and row.cpu and row.fastest_cpu and len(row.walls) == len(row.cpus) == 2
        assert (row.convolutions, sum(row.kernels.values())) == (8, 8)
        assert row.integer_convolutions == (4 if row.precision.startswith("int8") else 0)
        assert (row.difference is not None) == row.precision.startswith("int8")
        if row.precision == "int8 + float32":
            assert row.difference is not None and row.difference.largest < 0.01
        no_bfloat16 = "this CPU has no bfloat16: OpenVINO ran float32"
        runs = report.machine.bfloat16 or ("avx512f" in cpu_flags() and "tail" not in row.precision)  # in software
        assert (no_bfloat16 in row.notes) == ("bfloat16" in row.precision and not runs)
    json.loads(report.as_json())


def test_a_float_network_has_float_rows_only(tmp_path: Path) -> None:
    export_float_onnx(edsr("pams", 4), tmp_path / "float.onnx")
    report = benchmark(str(tmp_path / "float.onnx"), engines=["openvino"], size=(16, 16), repeats=1)
    assert [row.precision for row in report.rows] == ["float32", "bfloat16"] and report.model == "float.onnx"


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "tensorrt"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_float_network_behind_a_file(engine: str, arch: str, tmp_path: Path) -> None:
    """With codes of 8 bits the two differ little, and no rounding is left."""
    network = quantized(arch, "pams", 8, "deploy")
    export_onnx(network, tmp_path / "int8.onnx", engine)
    export_float_onnx(network, tmp_path / "float.onnx")
    erased = without_quantizers(onnx.load(tmp_path / "int8.onnx"))
    onnx.checker.check_model(erased, full_check=True)
    assert not has_quantizers(erased)
    assert not {node.op_type for node in erased.graph.node} & {"Round", "Clip"}
    onnx.save(erased, tmp_path / "erased.onnx")
    outputs = []
    for name in ("float", "erased"):
        speedup = ModelSpeedupOpenVINO(tmp_path / f"{name}.onnx", (1, 3, 32, 32), threads=1)
        speedup.compress()
        outputs.append(speedup.inference(photo(32))[0])
    assert difference(*outputs).psnr > 45


def test_an_integer_file_is_measured_beside_its_floats(tmp_path: Path) -> None:
    export_onnx(edsr("pams", 4), tmp_path / "model.onnx", "openvino")
    report = benchmark(str(tmp_path / "model.onnx"), engines=BOTH, size=(16, 16), repeats=1)
    assert [(row.engine, row.precision, row.integer_convolutions) for row in report.rows] == [
        ("openvino", "float32", 0),
        ("openvino", "bfloat16", 0),
        ("openvino", "int8 + float32", 2),
        ("openvino", "int8 + bfloat16", 2),
        ("openvino", "int8 + bfloat16-tail", 2),
        ("onnxruntime", "float32", 0),
        ("onnxruntime", "bfloat16", 0),
    ], "the file was written for OpenVINO"
    assert all(row.difference is None for row in report.rows), "a file has no simulator"


def test_difference_has_closed_forms() -> None:
    grey = torch.full((1, 1, 10, 10), 0.5)
    assert difference(grey, grey) == Difference(math.inf, 0.0, 0.0)
    changed = grey.clone()
    changed[..., 0, 0] += 10 / 255
    found = difference(changed, grey)
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / (100 / 100)), abs=1e-4)
    assert found.largest == pytest.approx(10, abs=1e-4) and found.changed == 0.01
    assert difference(changed * 255, grey * 255, 255).psnr == pytest.approx(found.psnr, abs=1e-4)


def test_photographs_of_any_size() -> None:
    assert photograph(3, (128, 96)).shape == (1, 3, 128, 96)
    assert photograph(1, (700, 900)).shape == (1, 1, 700, 900)
    assert torch.equal(photograph(3, (700, 600))[..., 512:, :], photograph(3, (700, 600))[..., 324:512, :].flip(2))


MACHINE = Machine("2026-01-02", "abc1234+", "CPU of a test", "amx_int8", True, 4, 0.25, {"openvino": "1.2"})


def test_the_table() -> None:
    rows = (
        Row("openvino", "float32", 4_000_000, (), 0.4, 0.5, 0.48, (0.4,), (0.5,), 10, 0, {"gemm (f32)": 10}),
        Row("openvino", "bfloat16", 4_000_000, (), 0.1, 0.12, 0.12, (0.1,), (0.12,), 10, 0, {"amx (bf16)": 10}),
        Row("openvino", "int8 + float32", 1_000_000, ("a note",), 0.05, 0.06, 0.06, (0.05,), (0.06,), 10, 8,
            {"amx (i8)": 8, "gemm (f32)": 2}, Difference(60.0, 0.5, 0.0125)),
        Row("onnxruntime", "bfloat16", 4_000_000, ("none", "a note")),
    )  # fmt: skip
    report = BenchReport("net.pth", (128, 256), 1, 9, MACHINE, rows)
    assert str(report).splitlines() == [
        "net.pth, 256x128 pixels, 1 thread(s), medians of 9 in turns",
        "2026-01-02, commit abc1234+, CPU of a test (amx_int8, bfloat16), 4 cores, load 0.2, openvino 1.2",
        "engine       precision           ms     CPU ms  speed  by CPU  over bf16  int8     MB    "
        "PSNR  largest  changed",
        "openvino     float32             400.0  500.0   1.00   1.00    0.25       0 of 10  4.00  -     -        -",
        "openvino     bfloat16            100.0  120.0   4.00   4.00    1.00       0 of 10  4.00  -     -        -",
        "openvino     int8 + float32 [1]  50.0   60.0    8.00   8.00    2.00       8 of 10  1.00  60.0  0.5      1.25%",
        "onnxruntime  bfloat16 [2][1]     -      -       -      -       -          -        4.00  -     -        -",
        "speed: float32 of the same engine = 1, by median wall time and by least CPU time; int8: convolutions that ran "
        "in integers; PSNR (dB), largest difference (grey levels, before rounding) and share of changed 8-bit values: "
        "against the integer simulator",
        "[1] a note",
        "[2] none",
    ]
    equal = replace(report, rows=(replace(rows[2], difference=Difference(math.inf, 0.0, 0.0)),))
    assert " equal " in str(equal)
    content = json.loads(equal.as_json())
    assert content["rows"][0]["difference"] == {"psnr": None, "largest": 0.0, "changed": 0.0}
    assert (content["format"], content["machine"]["commit"]) == (1, "abc1234+")


@pytest.mark.parametrize(
    ("text", "instructions", "bfloat16"),
    [
        ("model name : A\nflags : fpu avx2 avx512_vnni amx_int8 amx_bf16", "amx_int8", True),
        ("model name : A\nflags : fpu avx2 avx512f avx512_vnni", "avx512_vnni", False),
        ("model name : A\nflags : fpu avx2", "avx2", False),
        ("Features : fp asimddp bf16 i8mm", "i8mm", True),
        ("", "unknown", False),
    ],
)
def test_the_machine_is_read_from_cpuinfo(text: str, instructions: str, bfloat16: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    machine = this_machine(tmp_path / "cpuinfo")
    assert (machine.instruction_set, machine.bfloat16) == (instructions, bfloat16)
    assert machine.processor == "A" if "name" in text else machine.processor
    assert cpu_flags(tmp_path / "missing") == frozenset()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"repeats": 0}, OptionError, "repeats: 0 is not allowed; give a number from 1"),
        ({"size": (0, 8)}, OptionError, "size: (0, 8) is not allowed; give height and width in pixels"),
        (
            {"engines": ["openvno"]},
            ExportError,
            "engine: 'openvno' is not known; give one of openvino, onnxruntime, tens",
        ),
        ({"threads": -1, "engines": ["openvino"]}, ExportError, "threads: -1 is not allowed; give a number from 1"),
        ({"model": "missing.pth"}, CheckpointError, "checkpoint 'missing.pth' does not exist; give the path of a .pth"),
        ({"model": "missing.onnx"}, ExportError, "'missing.onnx' cannot be read: No such file or directory"),
    ],
)
def test_wrong_use(options: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        benchmark(**{"model": edsr("pams", 4), "size": (8, 8), "repeats": 1, **options})  # type: ignore[arg-type]
    assert str(raised.value).startswith(text)


def test_a_gate_needs_the_checkpoint(tmp_path: Path) -> None:
    export_onnx(quantized("EDSR", "ddtb", 4, "paper", gated=True), tmp_path / "gated.onnx")
    with pytest.raises(ExportError, match=r"and its float network cannot be read from it; give the checkpoint$"):
        benchmark(str(tmp_path / "gated.onnx"), engines=["openvino"], size=(8, 8), repeats=1)


def test_float_precision_is_checked() -> None:
    with pytest.raises(ExportError) as raised:
        ModelSpeedupOpenVINO("x.onnx", (1, 3, 8, 8), float_precision="bfloat61")
    assert str(raised.value) == (
        "float_precision: 'bfloat61' is not known; give one of float32, bfloat16, bfloat16-tail; did you mean "
        "'bfloat16'?"
    )
