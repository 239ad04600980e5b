"""Histograms, clipped shares and signal-to-noise ratios against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from srq_nni.quantization.activation import DDTBActivation, PAMSActivation
from srq_nni.quantization.layers import attach_quantizer
from srq_nni.quantization.weight import DDTBWeight, PAMSWeight
from srq_nni.report.layers import BINS, tensor_reports


def network(quantizer: nn.Module) -> nn.Module:
    """A 1x1 convolution with weights 1.0 and 0.5 and ``quantizer`` at its input."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 0.5]).view(2, 1, 1, 1))
    attach_quantizer(model, "0", "_input_0", quantizer)
    attach_quantizer(model, "0", "weight", PAMSWeight(2, weight_range="max"))
    return model.eval()


def test_numbers_by_hand() -> None:
    quantizer = PAMSActivation(2)  # levels -3, 0, 3
    quantizer.alpha.data.fill_(3.0)
    x = torch.tensor([0.0, 1.0, 3.0, 5.0]).view(1, 1, 2, 2)  # on the grid: 0, 0, 3, 3; errors 0, 1, 0, 2
    activation, weight = tensor_reports(network(quantizer), [x])
    assert (activation.name, activation.bits, activation.levels) == ("0.input", 2, (-3.0, 0.0, 3.0))
    assert activation.snr == pytest.approx(10 * math.log10(35 / 5))
    assert activation.clipped == 0.25  # 5 is further than half a step beyond 3
    assert (activation.lowest, activation.highest) == (0.0, 5.0)
    assert activation.counts[0] == 1 and activation.counts[-1] == 1 and sum(activation.counts) == 4
    assert activation.counts[int(1 / 5 * BINS)] == 1
    # 0.5 is a tie between 0 and 1 and goes to the even code, 0
    assert weight.name == "0.weight"
    assert weight.snr == pytest.approx(10 * math.log10(1.25 / 0.25), rel=1e-6)


def test_scales_of_channels_are_shown_in_steps_of_their_mean() -> None:
    """Codes -1, 0 and 1 of two channels, one ten times as large: one histogram of six values on three levels."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-1.0, 0.0, 1.0], [-10.0, 0.0, 12.0]]).view(2, 3, 1, 1))
    attach_quantizer(model, "0", "weight", PAMSWeight(2, weight_range="learned_per_channel"))
    report = tensor_reports(model.eval(), [])[0]
    assert report.scale == pytest.approx((1 + 11) / 2)  # of (1, 0, -1) and of (10, 0, 12), least error
    assert report.levels == pytest.approx((-6, 0, 6))
    assert report.snr == pytest.approx(10 * math.log10((2 + 244) / 2), abs=1e-5)
    assert (report.lowest, report.highest) == pytest.approx((-6, 6 * 12 / 11))
    assert report.counts[BINS - 1] == 1 and sum(report.counts) == 6


def test_levels_without_0_are_all_shown() -> None:
    """Weights -3, -1, 1 and 3 are the four levels of 2 bits; a shorter step clips the outer two."""
    model = nn.Sequential(nn.Conv2d(4, 1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([-3.0, -1.0, 1.0, 3.0]).view(1, 4, 1, 1))
    attach_quantizer(model, "0", "weight", DDTBWeight(2, weight_range="learned_midrise"))
    report = tensor_reports(model.eval(), [])[0]
    assert report.levels == pytest.approx((-3, -1, 1, 3))
    assert report.clipped == 0 and report.snr > 100
    model[0].weight_quantizer.bounds()[0].data.fill_(math.log(0.7))  # levels up to 2.1, so 2.8 is half a level away
    report = tensor_reports(model, [])[0]
    assert report.levels == pytest.approx((-2.1, -0.7, 0.7, 2.1))
    assert report.clipped == 0.5


def test_several_images_count_together_and_the_model_stays_as_it_was() -> None:
    quantizer = DDTBActivation(8)
    model = network(quantizer)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = [torch.full((1, 1, 3, 4), value) for value in (-2.0, 1.0, 4.0)]
    report = tensor_reports(model, images)[0]
    assert (report.lowest, report.highest, sum(report.counts)) == (-2.0, 4.0, 36)
    assert [report.counts[0], report.counts[BINS // 2], report.counts[-1]] == [12, 12, 12]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not quantizer._forward_hooks


def test_a_tensor_that_lies_on_its_grid_has_no_error() -> None:
    quantizer = PAMSActivation(8)
    quantizer.alpha.data.fill_(127.0)
    report = tensor_reports(network(quantizer), [torch.arange(4.0).view(1, 1, 2, 2)])[0]
    assert report.snr == math.inf and report.clipped == 0
