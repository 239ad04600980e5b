"""Windows cover the image once, look alike, and keep away from cuts; tiles leave no seam."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage import data

from srq_nni.speedup import export_float_onnx, export_onnx
from srq_nni.speedup.upscale import Picture, SRNetwork, upscale
from srq_nni.speedup.upscale.tiles import count_windows, windows
from tests.speedup.architectures import ARCHITECTURES, quantized
from tests.speedup.upscale.networks import nearest

PHOTO = Picture(np.ascontiguousarray(data.astronaut()[100:190, 100:201]))


@given(st.integers(1, 90), st.integers(1, 90), st.none() | st.integers(1, 40), st.integers(0, 20))
def test_windows(height: int, width: int, tile: int | None, overlap: int) -> None:
    covered = np.zeros((height, width), int)
    found = list(windows(height, width, tile, overlap))
    for window in found:
        covered[window.kept_rows, window.kept_columns] += 1
        for span, kept, length in (
            (window.rows, window.kept_rows, height),
            (window.columns, window.kept_columns, width),
        ):
            assert 0 <= span.start <= kept.start < kept.stop <= span.stop <= length
            assert span.start == 0 or kept.start - span.start >= overlap
            assert span.stop == length or span.stop - kept.stop >= overlap
    assert (covered == 1).all()
    assert len({(w.rows.stop - w.rows.start, w.columns.stop - w.columns.start) for w in found}) == 1
    assert len(found) == count_windows(height, width, tile, overlap)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["4 bits", "8 bits", "float"])
def test_tiles_are_bit_equal_to_the_whole(engine: str, arch: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    network = quantized(arch, "pams", 8 if kind == "8 bits" else 4, "deploy" if kind == "8 bits" else "paper")
    if kind == "float":
        export_float_onnx(network, tmp_path / "model.onnx")
    else:
        export_onnx(network, tmp_path / "model.onnx", engine)
    tiled = SRNetwork(tmp_path / "model.onnx", engine=engine, threads=1)
    deep = Picture(PHOTO.pixels * np.uint16(257))  # at 16 bits rounding hides next to nothing
    assert np.array_equal(upscale(tiled, deep, tile=29).pixels, upscale(tiled, deep, tile=0).pixels)


def test_less_overlap_than_the_network_sees_leaves_seams(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("openvino")
    export_float_onnx(quantized("EDSR", "pams", 4, "paper"), tmp_path / "model.onnx")
    network = SRNetwork(tmp_path / "model.onnx", engine="openvino", threads=1)
    whole = upscale(network, PHOTO, tile=0).pixels
    assert not np.array_equal(upscale(network, PHOTO, tile=29, overlap=2).pixels, whole)
    assert caplog.messages == ["overlap 2 is below 8, what a pixel sees: seams are possible"]


SCRIPT = """
import re, sys
from pathlib import Path
import numpy as np
from srq_nni.speedup.upscale import Picture, SRNetwork, upscale

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

network = SRNetwork(sys.argv[1], engine=sys.argv[2], threads=1)
upscale(network, Picture(np.zeros((300, 300, 3), np.uint8)), tile=128)
start = peak()
picture = Picture(np.random.default_rng(0).integers(0, 256, (2400, 2000, 3), np.uint8))
result = upscale(network, picture, tile=128)
print(peak() - start)
assert (result.pixels[::2, ::2] == picture.pixels).all()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_memory_is_that_of_the_pixels_and_one_window(engine: str, tmp_path: Path) -> None:
    """4.8 million pixels in and 19 out take 14 and 58 MB; in one piece the floats alone would take 280 MB."""
    pytest.importorskip(engine)
    command = [sys.executable, "-c", SCRIPT, str(nearest(tmp_path / "nearest.onnx")), engine]
    grown = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 110, f"{grown:.0f} MB more than for a small image"
