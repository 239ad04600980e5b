"""A converted network computes what the released one computes: PAMS and DDTB, three architectures, all key styles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from srq_nni.quantization.layers import activation_quantizers
from tests.conversion.converting import converted, distance, distance_in_float64, loaded, photograph
from tests.conversion.states import released

GREY_LEVEL = 1e-4
STUDENTS = [("pams", False), ("ddtb", False), ("ddtb", True)]
SIZES: dict[str, list[dict[str, Any]]] = {
    "edsr": [{"scale": 2}, {"scale": 3}, {"scale": 4, "blocks": 3, "features": 6}],
    "rdn": [{"scale": 2}, {"scale": 3, "layers": 2}, {"scale": 4, "blocks": 3, "features": 6}],
    "srresnet": [{"scale": 2}, {"scale": 4, "blocks": 3}, {"plain": False}],
}
CASES = [(arch, size) for arch, sizes in SIZES.items() for size in sizes]


@pytest.mark.parametrize(("arch", "size"), CASES)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("method", "gated"), STUDENTS)
def test_a_student_computes_what_the_released_code_computes(
    tmp_path: Path, arch: str, size: dict[str, Any], method: str, gated: bool, bits: int
) -> None:
    image = photograph()
    network = released(arch, method, image, bits=bits, gated=gated, **size)
    model = loaded(converted(network, tmp_path))
    assert method == "ddtb" or torch.load(tmp_path / "ours.pth")["srq"]["quantization"]["student"] == "float"
    gates = [getattr(quantizer, "gate", None) is not None for _, quantizer in activation_quantizers(model)]
    assert any(gates) == gated and not all(gates)
    assert distance(model, network, image) < GREY_LEVEL
    assert distance_in_float64(model, network, image) < 1e-9


@pytest.mark.parametrize(("arch", "size"), CASES)
def test_a_teacher_computes_what_the_released_code_computes(tmp_path: Path, arch: str, size: dict[str, Any]) -> None:
    image = photograph()
    network = released(arch, None, image, **size)
    done = converted(network, tmp_path, img_range=255)
    assert distance(loaded(done), network, image) < GREY_LEVEL
    content = torch.load(done.path, weights_only=True)
    assert set(content) == {"params", "conversion"}  # BasicSR reads the first


@pytest.mark.parametrize("method", [None, "pams", "ddtb"])
def test_res_scale_is_an_option(tmp_path: Path, method: str | None) -> None:
    image = photograph()
    network = released("edsr", method, image, res_scale=0.1)
    assert distance_in_float64(loaded(converted(network, tmp_path, res_scale=0.1)), network, image) < 1e-9
    assert distance(loaded(converted(network, tmp_path)), network, image) > 1


@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_an_official_gate_reads_the_whole_batch(tmp_path: Path, method: str) -> None:
    """Minimum and maximum of the batch couple images in the released code, so a batch is compared, too."""
    image = torch.cat([photograph(), photograph().flip(2) * 0.5])
    network = released("edsr", method, image, gated=method == "ddtb")
    assert distance_in_float64(loaded(converted(network, tmp_path)), network, image) < 1e-9


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("arch", ["edsr", "rdn", "srresnet"])
def test_symmetric_bounds_have_one_level_more(tmp_path: Path, arch: str, bits: int) -> None:
    """Bounds that never moved from +-10, as at 3 and 4 bits, put every clipped value on a tie of the rounding."""
    image = photograph()
    network = released(arch, "ddtb", image, bits=bits)
    for key, value in network.state.items():
        if key.endswith(("alpha_upper", "alpha_lower")):
            value.fill_(10.0 if key.endswith("upper") else -10.0)
    model = loaded(converted(network, tmp_path))
    assert distance(model, network, image) < GREY_LEVEL
    assert distance_in_float64(model, network, image) < 1e-9
