"""The emulated instructions are right, and with them the engines are exact at 8 bits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("capstone")
pytest.importorskip("elftools")

from srq_nni.speedup.byte_products import has_vnni
from srq_nni.speedup.machine import this_machine
from tests.emulation import newer_cpu
from tests.emulation.cpuid_sites import CPUID, cpuid_sites

HERE = Path(__file__).parent
BFLOAT16_TAIL = "test_a_tail_in_bfloat16_costs_its_own_rounding_at_any_width"
pytestmark = pytest.mark.skipif(newer_cpu.missing() is not None, reason=str(newer_cpu.missing()))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], Path]]:
    """Environment variables of a process that has all that can be emulated, and where it reports."""
    report = tmp_path_factory.mktemp("emulation") / "report"
    with newer_cpu.environment("avx_ne_convert", report) as variables:
        yield variables, report


def build(source: Path, target: Path, *options: str) -> Path:
    """Compile a C file."""
    subprocess.run([newer_cpu.compiler(), "-O2", *options, "-o", target, source], check=True)
    return target


def run(emulated: tuple[dict[str, str], Path], *command: str | Path) -> tuple[str, newer_cpu.Computed]:
    """Run a command on the emulated CPU; return what it printed and what was emulated for it."""
    variables, report = emulated
    report.unlink(missing_ok=True)
    result = subprocess.run(command, env=variables, cwd=newer_cpu.ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout, newer_cpu.read_report(report)


def test_every_form_of_the_instructions_is_plain_arithmetic(
    emulated: tuple[dict[str, str], Path], tmp_path: Path
) -> None:
    """Four threads run 29 forms 2,000 times with random operands, and each is compiled into a jump once."""
    program = build(HERE / "newer_cpu_check.c", tmp_path / "check", "-mavx2", "-mf16c", "-pthread")
    output, computed = run(emulated, program)
    assert output == "1856000 compared, 0 wrong\n"
    assert computed == newer_cpu.Computed(instructions=4 * 29 * 2000, places=29, answers=0)


def test_cpuid_is_told_from_its_bytes_in_other_instructions(tmp_path: Path) -> None:
    source = tmp_path / "library.c"
    source.write_text(
        "#include <cpuid.h>\n"
        "int looks_like_it(void) { volatile int bytes = 0x11a20f11; return bytes; }\n"
        "unsigned asks(void) { unsigned a, b, c, d; __cpuid(1, a, b, c, d); return a; }\n"
    )
    library = build(source, tmp_path / "library.so", "-shared", "-fPIC")
    (site,) = cpuid_sites(library)
    code = library.read_bytes()
    assert code[site : site + 2] == CPUID
    assert code.count(CPUID) == 2


def test_a_library_without_a_table_of_functions_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "library.c"
    source.write_text("int zero(void) { return 0; }\n")
    options = ("-shared", "-fPIC", "-nostdlib", "-fno-asynchronous-unwind-tables", "-Wl,--no-eh-frame-hdr")
    library = build(source, tmp_path / "library.so", *options)
    with pytest.raises(ValueError, match=r"library\.so has no table of its functions \(\.eh_frame_hdr\)"):
        cpuid_sites(library)


def test_other_illegal_instructions_still_end_a_program(emulated: tuple[dict[str, str], Path], tmp_path: Path) -> None:
    source = tmp_path / "illegal.c"
    source.write_text("int main(void) { __builtin_trap(); }\n")
    program = build(source, tmp_path / "illegal")
    assert subprocess.run([program], env=emulated[0]).returncode == -4


def test_linux_tells_a_program_of_the_emulated_cpu(emulated: tuple[dict[str, str], Path], tmp_path: Path) -> None:
    assert has_vnni() is False
    output, _ = run(emulated, sys.executable, "-c", "print(open('/proc/cpuinfo').read())")
    (tmp_path / "cpuinfo").write_text(output)
    assert has_vnni(tmp_path / "cpuinfo") is True
    assert this_machine(tmp_path / "cpuinfo").processor == f"{this_machine().processor}, avx_ne_convert emulated"


def test_engines_on_the_emulated_cpu(emulated: tuple[dict[str, str], Path]) -> None:
    """Rows of the matrix that a CPU without VNNI rounds, with the bounds of CPUs that have it, and bfloat16."""
    for package in ("onnx", *newer_cpu.LIBRARIES):
        pytest.importorskip(package)
    cells = [f"EDSR-{method}-paper-{engine}" for method in ("pams", "ddtb") for engine in newer_cpu.LIBRARIES]
    tests = [f"tests/speedup/test_matrix.py::test_8_bits[{cell}]" for cell in cells]
    tests += [f"tests/speedup/test_bfloat16.py::{BFLOAT16_TAIL}[{cell}]" for cell in ("pams-8", "ddtb-2")]
    output, computed = run(emulated, sys.executable, "-m", "pytest", "-q", *tests)
    assert "6 passed" in output
    assert computed.instructions > 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("cpu", newer_cpu.CPUS)
def test_all_that_depends_on_the_cpu(cpu: str, tmp_path: Path) -> None:
    for package in ("onnx", *newer_cpu.LIBRARIES):
        pytest.importorskip(package)
    files = ("matrix", "byte_products", "engines", "engine_arithmetic", "bfloat16", "ties", "shared_outputs")
    tests = [*(f"tests/speedup/test_{name}.py" for name in files), "tests/speedup/bench", "tests/test_shipped.py"]
    with newer_cpu.environment(cpu, tmp_path / "report") as variables:
        _, computed = run((variables, tmp_path / "report"), sys.executable, "-m", "pytest", "-q", *tests)
    assert computed.instructions > 1_000_000


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with (
        pytest.raises(RuntimeError, match=r"needs a C compiler, and no-such-compiler was not found\.$"),
        newer_cpu.environment("avx_vnni", tmp_path / "report"),
    ):
        pass


@pytest.mark.parametrize("arguments", [[], ["avx_vnni"], ["avx512_vnni", "script.py"]])
def test_without_a_known_cpu_and_a_program_it_explains_itself(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert newer_cpu.main(arguments) == 2
    assert "python -m tests.emulation.newer_cpu avx_vnni -m pytest" in capsys.readouterr().err
