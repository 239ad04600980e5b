"""Quantizers on any input or output of a module, by position or by name."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from srq_nni.errors import QuantizationError
from srq_nni.quantization.activation import DDTBActivation, PAMSActivation
from srq_nni.quantization.layers import attach_quantizer
from srq_nni.quantization.targets import WEIGHT
from srq_nni.quantization.weight import PAMSWeight


class Sum(nn.Module):
    """A sum of two branches, as a module of its own, so that its inputs and outputs can be named."""

    def forward(self, branch: torch.Tensor, skip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return branch + skip, branch - skip


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)
        self.sum = Sum()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total, difference = self.sum(self.linear(x), skip=x)
        return total * difference


def test_any_input_and_output_of_a_module_and_a_linear_layer() -> None:
    torch.manual_seed(0)
    network, x = TwoBranches(), torch.randn(2, 3, 5)
    w_linear, a_linear, skip, second = PAMSWeight(4), PAMSActivation(4), PAMSActivation(2), DDTBActivation(3)
    attach_quantizer(network, "linear", WEIGHT, w_linear)
    attach_quantizer(network, "linear", "_input_", a_linear)
    attach_quantizer(network, "sum", "_input_skip", skip)
    attach_quantizer(network, "sum", "_output_1", second)
    network = pickle.loads(pickle.dumps(copy.deepcopy(network.eval())))
    branch = F.linear(a_linear(x), w_linear(network.linear.weight), network.linear.bias)
    assert torch.equal(network(x), (branch + skip(x)) * second(branch - skip(x)))
    assert {"sum.input_1_quantizer.alpha", "sum.output_1_quantizer.lower"} <= set(network.state_dict())
    with pytest.raises(QuantizationError, match=r"^target '_input_1' of module 'sum' already has a quantizer"):
        attach_quantizer(network, "sum", "_input_1", skip)


def test_an_output_that_a_module_does_not_return() -> None:
    network = TwoBranches()
    attach_quantizer(network, "sum", "_output_2", PAMSActivation(4))
    with pytest.raises(QuantizationError) as error:
        network(torch.randn(2, 3, 5))
    assert str(error.value) == "a Sum returned 2 tensors and 'output_2_quantizer' wants number 2, from 0"


def test_a_sequence_does_not_run_its_own_quantizers_as_members() -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))), torch.randn(2, 4)
    first, last = PAMSActivation(2), DDTBActivation(3)
    attach_quantizer(network, "0", "_input_0", first)
    attach_quantizer(network, "0", "_output_0", last)
    linear = network[0][0]
    assert torch.equal(network(x), last(linear(first(x)).relu()))
    with pytest.raises(QuantizationError) as error:
        attach_quantizer(nn.Sequential(nn.ReLU()), "", "_output_0", last)
    assert str(error.value) == (
        "the network itself is a Sequential and cannot be replaced; wrap it: nn.Sequential(network)"
    )
