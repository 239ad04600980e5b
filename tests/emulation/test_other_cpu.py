"""The emulated instructions and CPUs are right, and on each of them the engines compute what they should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("capstone")
pytest.importorskip("elftools")

from srq_nni.speedup.machine import cpu_flags, this_machine
from tests.emulation import other_cpu
from tests.emulation.instruction_sites import CPUID, XGETBV, instruction_sites

HERE = Path(__file__).parent
BFLOAT16_TAIL = "test_a_tail_in_bfloat16_costs_its_own_rounding_at_any_width"
WEIGHTS_OF_7_BITS = "test_weights_of_7_bits_beside_activations_of_8_lose_nothing_on_any_cpu"
NEWEST = "avx_ne_convert"
BFLOAT16 = {"avx_ne_convert", "avx512_bf16", "amx_bf16"}
TDPBSSD_011 = ".byte 0xc4, 0xe2, 0x73, 0x5e, 0xc1"  # tdpbssd %tmm1, %tmm1, %tmm0, which assemblers refuse
LATER_THAN_VNNI = "avx512_bf16, avx512_bitalg, avx512_vbmi2, avx512_vpopcntdq, avx512ifma, avx512vbmi"
# CPUID's leaves of tiles, the last leaf, the bits of AMX and FP16; XCR0, arch_prctl before and after permission.
TOLD_OF_TILES = """1d.0: 1 0 0
1d.1: 4002000 80040 10
1e.0: 0 4010 0
up to 1e, bits f
registers 6 6, permitted 2 6, errors 0
other calls: 1
"""
pytestmark = pytest.mark.skipif(other_cpu.missing(NEWEST) is not None, reason=str(other_cpu.missing(NEWEST)))


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the emulated CPUs share."""
    folder = tmp_path_factory.mktemp("copies")
    other_cpu.write_copies(folder)
    return folder


@pytest.fixture
def emulated(request: pytest.FixtureRequest, copies: Path, tmp_path: Path) -> dict[str, str]:
    """Environment variables of a process on the CPU of the parameter, or on the one most of which is emulated."""
    cpu = getattr(request, "param", NEWEST)
    if (reason := other_cpu.missing(cpu)) is not None:
        pytest.skip(reason)
    return other_cpu.environment(cpu, copies, tmp_path / "report")


each_cpu = pytest.mark.parametrize(
    ("emulated", "cpu"), [pytest.param(cpu, cpu, id=cpu) for cpu in other_cpu.CPUS], indirect=["emulated"]
)


def build(source: Path, target: Path, *options: str) -> Path:
    """Compile a C file."""
    subprocess.run([other_cpu.compiler(), "-O2", "-o", target, source, *options], check=True)
    return target


def run(emulated: dict[str, str], *command: str | Path) -> tuple[str, other_cpu.Computed]:
    """Run a command on the emulated CPU; return what it printed and what was emulated for it."""
    report = Path(emulated["OTHER_CPU_REPORT"])
    report.unlink(missing_ok=True)
    result = subprocess.run(command, env=emulated, cwd=other_cpu.ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout, other_cpu.read_report(report)


def was_emulated(cpu: str, computed: other_cpu.Computed) -> bool:
    """Whether the engines asked for the CPU, and what this machine lacks of it was computed."""
    lacks = not cpu_flags() >= other_cpu.CPUS[cpu] - other_cpu.CLAIMED
    least = 100_000 if other_cpu.AMX & other_cpu.CPUS[cpu] else 1_000_000  # one on tiles does as much as 128 on vectors
    return computed.answers > 0 and (computed.instructions > least or not lacks)


def test_every_form_of_the_instructions_is_plain_arithmetic(emulated: dict[str, str], tmp_path: Path) -> None:
    """Four threads run 29 forms 2,000 times with random operands, and each is compiled into a jump once.

    14 of them are those of AVX-VNNI, which a CPU may have itself.
    """
    program = build(HERE / "instructions_check.c", tmp_path / "check", "-mavx2", "-mf16c", "-pthread")
    output, computed = run(emulated, program)
    assert output == "1856000 compared, 0 wrong\n"
    forms = 29 - 14 * ("avx_vnni" in cpu_flags())
    assert computed == other_cpu.Computed(instructions=4 * forms * 2000, places=forms, answers=0)


@pytest.mark.parametrize("emulated", ["amx"], indirect=True)
def test_every_form_of_the_instructions_on_tiles_is_plain_arithmetic(emulated: dict[str, str], tmp_path: Path) -> None:
    """Four threads run 40 instructions 250 times, in random shapes, at 41 places: one of two frees the tiles."""
    program = build(HERE / "tiles_check.c", tmp_path / "check", "-mno-red-zone", "-pthread", "-lm")
    output, computed = run(emulated, program)
    assert output == TOLD_OF_TILES + "14675212 compared, 0 wrong\n"
    assert computed == other_cpu.Computed(instructions=4 * 40 * 250, places=41, answers=6)


@pytest.mark.parametrize("emulated", ["amx"], indirect=True)
@pytest.mark.parametrize(
    ("rows", "code", "words"),
    [
        ("16, 16, 17", "", "LDTILECFG takes up to 16 rows of up to 64 bytes for each of 8 tiles, and zeros elsewhere."),
        ("16, 16", "tilezero %tmm2", "An instruction takes a tile that is not configured."),
        ("16, 16, 16", TDPBSSD_011, "A product of tiles takes three different tiles."),
        (
            "16, 15, 16",
            "tdpbssd %tmm2, %tmm1, %tmm0",
            "A product of tiles takes sums (m, 4n bytes), left (m, 4k bytes)",
        ),
        ("16, 16, 16", "vaddph %zmm0, %zmm1, %zmm2", "An instruction of AVX512-FP16 is not emulated."),
    ],
    ids=["configuration", "no tile", "same tiles", "other shapes", "halves"],
)
def test_what_a_cpu_with_amx_refuses_ends_a_program(
    emulated: dict[str, str], tmp_path: Path, rows: str, code: str, words: str
) -> None:
    source = tmp_path / "refused.c"
    source.write_text(
        "struct { unsigned char palette, zeros[15]; unsigned short bytes[16]; unsigned char rows[16]; } shape = {\n"
        f"    .palette = 1, .bytes = {{[0 ... {rows.count(',')}] = 64}}, .rows = {{{rows}}}}};\n"
        f'int main(void) {{ __asm__ volatile("ldtilecfg shape(%rip)\\n {code}"); }}\n'
    )
    result = subprocess.run([build(source, tmp_path / "refused")], env=emulated, capture_output=True, text=True)
    assert result.returncode in (-4, -6)
    assert result.stderr.startswith(words)


@pytest.mark.parametrize(
    ("instruction", "bytes_of_it", "asks"),
    [(CPUID, "11a20f11", "cpuid"), (XGETBV, "11d0010f", "xgetbv")],
    ids=["cpuid", "xgetbv"],
)
def test_a_question_is_told_from_its_bytes_in_other_instructions(
    instruction: bytes, bytes_of_it: str, asks: str, tmp_path: Path
) -> None:
    source = tmp_path / "library.c"
    source.write_text(
        f"int looks_like_it(void) {{ volatile int bytes = 0x{bytes_of_it}; return bytes; }}\n"
        f'int asks(void) {{ int a; __asm__("{asks}" : "=a"(a) : "a"(1), "c"(0) : "rbx", "rdx"); return a; }}\n'
    )
    library = build(source, tmp_path / "library.so", "-shared", "-fPIC")
    sites = instruction_sites(library)
    code = library.read_bytes()
    assert list(sites.values()) == [instruction]
    assert all(code[site:].startswith(instruction) for site in sites)
    assert code.count(instruction) == 2


def test_a_library_without_a_table_of_functions_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "library.c"
    source.write_text("int zero(void) { return 0; }\n")
    options = ("-shared", "-fPIC", "-nostdlib", "-fno-asynchronous-unwind-tables", "-Wl,--no-eh-frame-hdr")
    library = build(source, tmp_path / "library.so", *options)
    with pytest.raises(ValueError, match=r"library\.so has no table of its functions \(\.eh_frame_hdr\)"):
        instruction_sites(library)


def test_other_illegal_instructions_still_end_a_program(emulated: dict[str, str], tmp_path: Path) -> None:
    source = tmp_path / "illegal.c"
    source.write_text("int main(void) { __builtin_trap(); }\n")
    program = build(source, tmp_path / "illegal")
    assert subprocess.run([program], env=emulated).returncode == -4


@pytest.mark.parametrize("emulated", ["amx"], indirect=True)
def test_onnxruntime_multiplies_matrices_of_bytes_by_tiles(emulated: dict[str, str]) -> None:
    """Most of its quantized convolutions use AVX-512 VNNI there; 64 x 256 x 64 products are 64 of tiles."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    _, computed = run(emulated, sys.executable, "-m", "tests.emulation.multiply_bytes")
    assert computed.instructions > 4 * 4 * 4


@each_cpu
def test_linux_and_cpuid_tell_a_program_of_the_emulated_cpu(emulated: dict[str, str], cpu: str) -> None:
    """What OpenVINO can do with the CPU, it knows from CPUID."""
    pytest.importorskip("openvino")
    program = "; ".join(
        (
            "from srq_nni.speedup.machine import cpu_flags, this_machine",
            "from srq_nni.speedup.openvino import has_bfloat16",
            "print(*sorted(cpu_flags()), has_bfloat16(), this_machine().processor, sep='\\n')",
        )
    )
    output, _ = run(emulated, sys.executable, "-c", program)
    *flags, bfloat16, processor = output.splitlines()
    assert set(flags) == (cpu_flags() - other_cpu.BITS.keys()) | other_cpu.CPUS[cpu]
    assert bfloat16 == str(bool(BFLOAT16 & set(flags)))
    assert processor == f"{this_machine().processor}, {cpu} emulated"


@each_cpu
def test_engines_on_the_emulated_cpu(emulated: dict[str, str], cpu: str) -> None:
    """Rows of the matrix that depend on VNNI or must not, 1x1 convolutions, which saturated on AVX2, and bfloat16."""
    for package in ("onnx", *other_cpu.LIBRARIES):
        pytest.importorskip(package)
    cells = [f"EDSR-{method}-paper-{engine}" for method in ("pams", "ddtb") for engine in other_cpu.LIBRARIES]
    tests = [f"tests/speedup/test_matrix.py::test_8_bits[{cell}]" for cell in cells]
    tests += [
        f"tests/speedup/test_matrix.py::{WEIGHTS_OF_7_BITS}[{arch}-{method}-deploy-False-{engine}]"
        for arch in ("MSRResNet", "RDN")
        for method in ("pams", "ddtb")
        for engine in other_cpu.LIBRARIES
    ]
    tests.append("tests/speedup/test_byte_products.py::test_1x1_convolutions_of_openvino_are_exact[7-uint8]")
    tests += [f"tests/speedup/test_bfloat16.py::{BFLOAT16_TAIL}[{cell}]" for cell in ("pams-8", "ddtb-2")]
    tests.append("tests/speedup/test_bfloat16.py::test_all_but_float32_runs_on_tiles_where_the_cpu_has_them")
    output, computed = run(emulated, sys.executable, "-m", "pytest", "-q", *tests)
    skipped = 2 * (not BFLOAT16 & other_cpu.CPUS[cpu]) + (not other_cpu.AMX & other_cpu.CPUS[cpu])
    assert f"{16 - skipped} passed{f', {skipped} skipped' if skipped else ''} in" in output
    assert was_emulated(cpu, computed)


@pytest.mark.slow
@each_cpu
def test_all_that_depends_on_the_cpu(emulated: dict[str, str], cpu: str) -> None:
    for package in ("onnx", *other_cpu.LIBRARIES):
        pytest.importorskip(package)
    files = (
        "matrix",
        "byte_products",
        "engines",
        "engine_arithmetic",
        "bfloat16",
        "ties",
        "shared_outputs",
        "double_quantizers",
    )
    tests = [f"tests/speedup/test_{name}.py" for name in (*files, "shared_outputs", "double_quantizers")]
    tests += ["tests/speedup/bench", "tests/test_shipped.py"]
    _, computed = run(emulated, sys.executable, "-m", "pytest", "-q", *tests)
    assert was_emulated(cpu, computed)


@pytest.mark.parametrize(
    ("flags", "cpu", "reason"),
    [
        ("sse4_1", "avx2", "the emulation needs Linux on an x86-64 CPU with AVX2"),
        ("avx2", "avx2", "this CPU is like avx2 itself"),
        ("avx2 avx_vnni", "avx2", None),
        ("avx2", "avx_ne_convert", None),
        ("avx2 avx512f avx512dq avx512cd", "avx512", "avx512 takes a CPU that has avx512bw, avx512vl"),
        (" ".join(sorted({"avx2", *other_cpu.AVX512, *other_cpu.AVX512_LATER})), "amx", None),
        (
            " ".join(sorted({"avx2", *other_cpu.CPUS["avx512_vnni"]})),
            "amx",
            f"amx takes a CPU that has {LATER_THAN_VNNI}",
        ),
        (" ".join(sorted({"avx2", *other_cpu.CPUS["amx"]})), "amx", "this CPU is like amx itself"),
    ],
)
def test_what_this_machine_cannot_emulate(
    flags: str, cpu: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_cpu, "cpu_flags", lambda: frozenset(flags.split()))
    assert other_cpu.missing(cpu) == reason


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"needs a C compiler, and no-such-compiler was not found\.$"):
        other_cpu.environment(NEWEST, tmp_path, tmp_path / "report")


def test_a_cpu_that_this_machine_cannot_emulate_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(other_cpu, "cpu_flags", lambda: frozenset({"avx2"}))
    assert other_cpu.main(["avx512", "-c", "pass"]) == 2
    assert capsys.readouterr().err.startswith("avx512 takes a CPU that has avx512bw, ")


@pytest.mark.parametrize("arguments", [[], ["avx_vnni"], ["amx_int8", "script.py"]])
def test_without_a_known_cpu_and_a_program_it_explains_itself(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert other_cpu.main(arguments) == 2
    assert "python -m tests.emulation.other_cpu avx2 -m pytest" in capsys.readouterr().err
