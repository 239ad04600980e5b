"""The published table of sizes and operations (spec: methods.md, section 7), from the summary of each network."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.compression.options import options_from
from srq_nni.summary import Summary, summarize_network

# network -> P, Pq, size in millions at 8, 4, 3 and 2 bits
SIZES = {
    ("EDSR", 4): (1_517_571, 1_181_696, (0.631, 0.484, 0.447, 0.410)),
    ("EDSR", 2): (1_369_859, 1_181_696, (0.484, 0.336, 0.299, 0.262)),
    ("RDN", 4): (22_271_107, 21_935_232, (5.820, 3.078, 2.392, 1.707)),
    ("RDN", 2): (22_123_395, 21_935_232, (5.672, 2.930, 2.245, 1.559)),
    ("SRResNet", 4): (1_546_771, 1_179_648, (0.662, 0.515, 0.478, 0.441)),
    ("SRResNet", 2): (1_399_314, 1_179_648, (0.515, 0.367, 0.330, 0.293)),
}
# network -> GMACs, share with quantized weights, T BOPs in float; at 8, 4 and 2 bits in `paper`, in `official` wiring
OPERATIONS = {
    ("EDSR", 4): (114.2, 0.595, 117.0, (51.7, 48.5, 47.7), (58.3, 52.3, 49.7)),
    ("EDSR", 2): (316.3, 0.859, 323.8, (62.9, 49.9, 46.6), (89.0, 65.1, 54.8)),
    ("RDN", 4): (1309.2, 0.965, 1340.6, (128.2, 67.6, 52.5), (128.6, 67.8, 52.6)),
    ("RDN", 2): (5096.2, 0.991, 5218.5, (368.8, 126.4, 65.7), (370.5, 127.3, 66.2)),
    ("SRResNet", 4): (127.8, 0.532, 130.8, (65.6, 62.3, 61.5), (65.6, 62.3, 61.5)),
    ("SRResNet", 2): (332.2, 0.818, 340.2, (79.2, 66.2, 62.9), (79.2, 66.2, 62.9)),
}


LAST_DIGIT = 0.06  # the table has EDSR x2 at 316.3 GMACs and SRResNet x2 at 340.2 T; exact are 316.249 and 340.146
BIG = [pytest.param("RDN", 2, marks=pytest.mark.slow)]  # its parts are those of x4
NETWORKS = [key for key in SIZES if key != ("RDN", 2)] + BIG


@functools.cache
def built(arch: str, upscale: int, wiring: str, method: str) -> Summary:
    """Return the summary of a published network of 4 bits, which gets no memory for its values."""
    with torch.device("meta"):
        network = build_float({"type": arch, "num_in_ch": 3, "num_out_ch": 3, "upscale": upscale})
        insert_quantizers(network, options_from({"quantizer": method, "bits": 4, "wiring": wiring}))
    return summarize_network(network, engines=())


def published(arch: str, upscale: int, bits: int, wiring: str = "paper", method: str = "pams") -> Summary:
    """Return the summary of a published network with ``bits`` in place of 4."""
    summary = built(arch, upscale, wiring, method)
    rows = tuple(
        replace(row, weight_bits=row.weight_bits and bits, activation_bits=row.activation_bits and bits)
        for row in summary.rows
    )
    return replace(summary, rows=rows)


@pytest.mark.parametrize(("arch", "upscale"), NETWORKS)
def test_sizes(arch: str, upscale: int) -> None:
    parameters, quantized, sizes = SIZES[arch, upscale]
    for bits, size in zip((8, 4, 3, 2), sizes, strict=True):
        summary = published(arch, upscale, bits)
        assert (summary.parameters, summary.quantized_parameters) == (parameters, quantized)
        assert round(summary.size / 1e6, 3) == size
        assert summary.scale == upscale


@pytest.mark.parametrize(("arch", "upscale"), NETWORKS)
def test_operations(arch: str, upscale: int) -> None:
    gmacs, share, full, paper, official = OPERATIONS[arch, upscale]
    for position, bits in enumerate((8, 4, 2)):
        for wiring, expected in (("paper", paper), ("official", official)):
            summary = published(arch, upscale, bits, wiring)
            assert summary.macs / 1e9 == pytest.approx(gmacs, abs=LAST_DIGIT)
            assert round(summary.weight_coverage, 3) == share
            assert summary.float_bops / 1e12 == pytest.approx(full, abs=LAST_DIGIT)
            assert summary.bops / 1e12 == pytest.approx(expected[position], abs=LAST_DIGIT)
            if wiring == "paper" or arch == "SRResNet":
                assert summary.coverage == summary.weight_coverage


def test_operations_of_edsr_in_closed_form() -> None:
    for upscale, up in ((2, 4 * 64 * 64 * 9 + 4 * 64 * 3 * 9), (4, (1 + 4) * 4 * 64 * 64 * 9 + 16 * 64 * 3 * 9)):
        pixels, body = 1280 * 720 // upscale**2, 32 * 64 * 64 * 9
        rest = 3 * 64 * 9 + 64 * 64 * 9 + up
        summary = published("EDSR", upscale, 4)
        assert summary.macs == (body + rest) * pixels
        assert summary.bops == (body * 16 + rest * 1024) * pixels


def test_the_ratio_of_edsr_at_8_bits_is_2_40() -> None:
    """Both papers' arithmetic; the abstract's 2.42 cannot be repeated (methods.md, 7)."""
    summary = published("EDSR", 4, 8)
    assert round(summary.ratio, 3) == 2.404
    weights = sum(row.weights for row in summary.quantized)
    assert round(summary.parameters / (summary.parameters - weights * 3 / 4), 3) == 2.398
    assert round(4 * summary.parameters / (summary.file_bytes - 4 * summary.bounds), 3) == 2.398


def test_the_official_wiring_covers_half_of_what_it_could() -> None:
    summary = published("EDSR", 4, 4, "official")
    assert round(summary.coverage, 3) == round(summary.weight_coverage / 2, 3) == 0.297
    by_name = {row.name: row for row in summary.rows}
    assert (by_name["body.3.conv1"].activation_bits, by_name["body.3.conv1"].source) == (None, "")
    assert (by_name["body.3.conv2"].activation_bits, by_name["body.3.conv2"].source) == (4, "own")


def test_deploy_names_the_quantizer_of_the_block() -> None:
    by_name = {row.name: row for row in published("EDSR", 2, 4, "deploy").rows}
    assert by_name["body.3.conv1"].source == "body.3.input"
    assert published("EDSR", 2, 4, "deploy").coverage == published("EDSR", 2, 4, "paper").coverage


def test_operations_at_x3_count_a_fraction_of_a_pixel() -> None:
    """1280 is no multiple of 3: 1280 x 720 / 9 low-resolution pixels, as published tables have it."""
    x3, x1 = published("EDSR", 3, 4), 1280 * 720 // 9
    head = next(row for row in x3.rows if row.name == "conv_first")
    assert head.macs == 3 * 64 * 9 * x1
    last = next(row for row in x3.rows if row.name == "conv_last")
    assert last.macs == 64 * 3 * 9 * 1280 * 720


def test_gates_and_bounds_stand_beside_the_published_numbers() -> None:
    pams, ddtb = published("EDSR", 4, 4), published("EDSR", 4, 4, method="ddtb")
    assert (pams.bounds, ddtb.bounds) == (32, 64)
    assert (pams.size, pams.bops) == (ddtb.size, ddtb.bops)
    assert ddtb.file_bytes - pams.file_bytes == 4 * 32
