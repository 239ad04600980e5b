"""The exactness certificate and the coverage."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from srq_nni.errors import ExportError
from srq_nni.speedup import certify, integer_simulator
from srq_nni.speedup.certificate import Certificate, CertificateRow, count_macs
from srq_nni.speedup.integers import read_integers
from srq_nni.speedup.simulator import IntegerConv2d
from tests.speedup.networks import edsr, mixed, photo, quantize


def test_bound_is_reached_by_the_worst_input_and_never_passed() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1))
    quantize(network, "0", "pams", 4)
    simulated = integer_simulator(network)[0]  # type: ignore[index]
    row = certify(network, (8, 8)).rows[0]
    sums = simulated.weight_codes.abs().sum((1, 2, 3))
    worst = simulated.weight_codes[int(sums.argmax())].sign() * 7
    reached = simulated.accumulate(torch.nn.functional.pad(worst[None].float(), [2] * 4)).abs().max()
    assert int(reached) == row.bound
    random = simulated.accumulate(torch.randint(-7, 8, (8, 3, 20, 20)).float()).abs().max()
    assert int(random) <= row.bound


def test_bound_counts_an_integer_bias() -> None:
    network = edsr("pams", 8)
    plain, with_bias = (certify(network, integer_bias=flag).rows[0].bound for flag in (False, True))
    simulated = integer_simulator(network, integer_bias=True).get_submodule("body.0.conv1")
    assert isinstance(simulated, IntegerConv2d) and simulated.bias_codes is not None
    assert plain < with_bias <= plain + int(simulated.bias_codes.abs().max())


def test_integers_that_were_read_already_give_the_same_certificate() -> None:
    network = edsr("pams", 8).eval()
    for flag in (False, True):
        integers = read_integers(network, integer_bias=flag)
        assert certify(network, integers=integers) == certify(network, integer_bias=flag)


def test_coverage_counts_multiply_accumulates() -> None:
    certificate = certify(edsr("pams", 4, blocks=2, features=8), (10, 12))
    pixels = 10 * 12
    body = 4 * 9 * 8 * 8 * pixels
    rest = 9 * (3 * 8 + 8 * 8 + 8 * 32) * pixels + 9 * 8 * 3 * pixels * 4
    assert certificate.total_macs == body + rest
    assert certificate.coverage == pytest.approx(body / (body + rest), abs=1e-12)
    assert [row.name for row in certificate.rows] == [f"body.{b}.conv{c}" for b in (0, 1) for c in (1, 2)]


def test_one_sided_layers_do_not_count() -> None:
    rows = {row.name: row for row in certify(mixed(3), (16, 16)).rows}
    assert (rows["weight_only"].activation_bits, rows["weight_only"].weight_bits) == (None, 3)
    assert (rows["input_only"].activation_bits, rows["input_only"].weight_bits) == (3, None)
    assert not rows["weight_only"].is_integer and not rows["input_only"].is_integer
    assert rows["twice"].macs == 2 * 9 * 16 * 16 * 256
    assert rows["left"].macs == 16 * 4 * 256


def test_counting_leaves_no_hooks_and_no_statistics() -> None:
    network = edsr("pams", 4)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    certify(network)
    count_macs(network, (8, 8))
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    network(photo())


def test_limits() -> None:
    assert CertificateRow("a", 8, 8, 2**24 - 1, 1).exact_in_float32
    assert not CertificateRow("a", 8, 8, 2**24, 1).exact_in_float32
    assert CertificateRow("a", 8, 8, 2**31 - 1, 1).exact_in_int32
    assert not CertificateRow("a", 8, 8, 2**31, 1).exact_in_int32


def test_table() -> None:
    rows = (CertificateRow("body.0", 4, 4, 18_000, 60), CertificateRow("body.1", None, 8, 0, 40))
    assert str(Certificate(rows, 100_000_000, (64, 48))) == (
        "layer   activation  weight  largest sum  of 2^24  float32  int32\n"
        "body.0  4           4       18,000       0.11%    exact    exact\n"
        "body.1  float       8       -            -        -        -\n"
        "coverage 0.0% of 0.10 GMACs at 64x48: both operands quantized"
    )


def test_sizes_that_do_not_run_are_refused() -> None:
    with pytest.raises(ExportError, match=r"^the network does not run on an input of shape \(1, 5, 64, 64\): "):
        certify(edsr("pams", 4), channels=5)
    with pytest.raises(ExportError, match=r"^the network has no convolution to count"):
        count_macs(nn.Identity(), (8, 8))
