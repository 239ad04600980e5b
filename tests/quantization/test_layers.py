"""Quantizers in networks: the quantized convolution, and the places of a quantizer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from srq_nni.errors import QuantizationError
from srq_nni.quantization.activation import DDTBActivation, PAMSActivation
from srq_nni.quantization.gate import Gate
from srq_nni.quantization.layers import (
    QuantConv2d,
    activation_quantizers,
    attach_quantizer,
    calibrate,
    quantized_convolutions,
)
from srq_nni.quantization.targets import INPUT, OUTPUT, WEIGHT
from srq_nni.quantization.weight import DDTBWeight, PAMSWeight


class Block(nn.Module):
    """A residual block as in EDSR, with a linear layer beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.PReLU()
        self.conv2 = nn.Conv2d(4, 3, 3, padding=1)
        self.linear = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.conv2(self.act(self.conv1(x)))
        return x + self.linear(x.mean((2, 3)))[..., None, None]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 3, 1)
        self.body = nn.Sequential(Block(), Block())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.head(x))


def quantized_network() -> Network:
    network = Network()
    for index in range(2):
        for conv in ("conv1", "conv2"):
            attach_quantizer(network, f"body.{index}.{conv}", WEIGHT, PAMSWeight(4))
            attach_quantizer(network, f"body.{index}.{conv}", INPUT, PAMSActivation(4))
        attach_quantizer(network, f"body.{index}.act", OUTPUT, DDTBActivation(4))
        attach_quantizer(network, f"body.{index}", INPUT, PAMSActivation(8))
    attach_quantizer(network, "body.0.conv2", OUTPUT, PAMSActivation(8))
    gated = network.body[0].act.output_quantizer
    gated.add_gate(Gate(4))
    gated.apply_gate(True)
    return network


def train_one_step(network: nn.Module, x: torch.Tensor) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for mode in ("calibrate", "quantize"):
        for _, quantizer in activation_quantizers(network.train()):
            quantizer.set_mode(mode)  # type: ignore[arg-type]
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()


# The convolution.


@pytest.mark.parametrize("options", [{}, {"stride": 2, "bias": False}, {"padding": 1, "padding_mode": "reflect"}])
@pytest.mark.parametrize("quantized", [(True, True), (True, False), (False, True), (False, False)])
def test_convolution_of_quantized_operands(
    options: dict[str, object], quantized: tuple[bool, bool], photographs: torch.Tensor
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3, **options))  # type: ignore[arg-type]
    conv = network[0]
    activation, weight = PAMSActivation(4), DDTBWeight(3)
    nn.init.constant_(activation.alpha, 200.0)
    for wanted, target, quantizer in zip(quantized, (INPUT, WEIGHT), (activation, weight), strict=True):
        if wanted:
            attach_quantizer(network, "0", target, quantizer)
    x = activation(photographs) if quantized[0] else photographs
    w = weight(conv.weight) if quantized[1] else conv.weight
    if options.get("padding_mode") == "reflect":
        expected = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), w, conv.bias)
    else:
        expected = F.conv2d(x, w, conv.bias, stride=options.get("stride", 1))  # type: ignore[arg-type]
    torch.testing.assert_close(network(photographs), expected)


def test_float_names_survive_and_float_weights_fit_both_ways(photographs: torch.Tensor) -> None:
    torch.manual_seed(1)
    network, plain = quantized_network(), Network()
    state = network.state_dict()
    assert set(plain.state_dict()) <= set(state)
    added = {key for key in state if key not in plain.state_dict()}
    assert added and all("_quantizer." in key for key in added)

    missing, unexpected = network.load_state_dict(plain.state_dict(), strict=False)
    # Batch norms do not report their counter as missing.
    assert set(missing) == {key for key in added if not key.endswith("num_batches_tracked")} and not unexpected
    for _, quantizer in activation_quantizers(network):
        quantizer.set_mode("float")
    for _, conv in quantized_convolutions(network):
        conv.weight_quantizer = None
    assert torch.equal(network(photographs), plain(photographs))


def test_a_quantized_convolution_shares_the_parameters_of_the_float_one() -> None:
    conv = nn.Conv2d(3, 4, 3).eval()
    weight = conv.weight
    quantized = QuantConv2d.from_float(conv)
    assert quantized.weight is weight and quantized.bias is conv.bias and not quantized.training
    assert isinstance(quantized, nn.Conv2d)


def test_attached_quantizers_are_found_by_name() -> None:
    network = quantized_network()
    assert {name for name, _ in activation_quantizers(network)} == {
        *(f"body.{index}.{conv}.input_quantizer" for index in range(2) for conv in ("conv1", "conv2")),
        *(f"body.{index}.input_quantizer" for index in range(2)),
        *(f"body.{index}.act.output_quantizer" for index in range(2)),
        "body.0.conv2.output_quantizer",
    }
    assert [name for name, _ in quantized_convolutions(network)] == [
        f"body.{index}.{conv}" for index in range(2) for conv in ("conv1", "conv2")
    ]


# Copies.


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state"])
def test_a_trained_network_survives_a_copy(way: str, photographs: torch.Tensor) -> None:
    network = quantized_network()
    train_one_step(network, photographs)
    network(photographs)
    if way == "deepcopy":
        other = copy.deepcopy(network)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(network))
    else:
        other = quantized_network()
        other.load_state_dict(network.state_dict())
    expected = network.eval()(photographs)
    assert torch.equal(other.eval()(photographs), expected)

    # The hooks of the copy must use the quantizers of the copy.
    for _, quantizer in activation_quantizers(other):
        quantizer.set_mode("float")
    assert not torch.equal(other(photographs), expected)
    assert torch.equal(network(photographs), expected)


def test_a_single_convolution_survives_a_copy_after_a_training_step(photographs: torch.Tensor) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    attach_quantizer(network, "0", WEIGHT, DDTBWeight(2))
    attach_quantizer(network, "0", INPUT, DDTBActivation(2))
    train_one_step(network, photographs)
    conv = network[0]
    conv(photographs)
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert torch.equal(other.eval()(photographs), conv.eval()(photographs))


# Places.


def test_quantizers_on_other_modules_work_by_hooks(photographs: torch.Tensor) -> None:
    network = nn.Sequential(nn.PReLU())
    first, second = PAMSActivation(4), PAMSActivation(2)
    attach_quantizer(network, "0", INPUT, first)
    attach_quantizer(network, "0", OUTPUT, second)
    x = photographs / 20 - 5
    assert torch.equal(network(x), second(F.prelu(first(x), network[0].weight)))


def test_hooks_quantize_the_first_of_several_tensors() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, y

    network = nn.Sequential(Pair())
    quantizer = PAMSActivation(2)
    x, y = torch.randn(2, 3, 4)
    attach_quantizer(network, "0", INPUT, quantizer)
    assert all(torch.equal(a, b) for a, b in zip(network[0](x, y), (quantizer(x), y), strict=True))
    attach_quantizer(network, "0", OUTPUT, PAMSActivation(8))
    assert torch.equal(network[0](x, y)[1], y)


def test_an_output_quantizer_stays_when_the_weight_follows(photographs: torch.Tensor) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    output, weight = PAMSActivation(4), PAMSWeight(4)
    attach_quantizer(network, "0", OUTPUT, output)
    attach_quantizer(network, "0", WEIGHT, weight)
    conv = network[0]
    assert torch.equal(network(photographs), output(F.conv2d(photographs, weight(conv.weight), conv.bias)))


def test_a_convolution_with_two_names_is_quantized_under_both(photographs: torch.Tensor) -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    network = nn.ModuleDict({"a": conv, "b": nn.Sequential(conv)})
    attach_quantizer(network, "a", WEIGHT, PAMSWeight(2))
    assert network["a"] is network["b"][0]
    assert isinstance(network["a"], QuantConv2d)


class OwnConv(nn.Conv2d):
    pass


REFUSED = {
    "unknown module": (
        "body.0.conv3",
        WEIGHT,
        "the network has no module 'body.0.conv3'; did you mean 'body.0.conv2'?",
    ),
    "unknown target": (
        "body.0.conv2",
        "wieght",
        "target 'wieght' of module 'body.0.conv2' (QuantConv2d) is not known; give one of weight, _input_0, _output_0; "
        "did you mean 'weight'?",
    ),
    "unknown input": (
        "body.0.act",
        "_input_inptu",
        "target '_input_inptu' of module 'body.0.act' (PReLU) does not exist; its forward has the inputs "
        "_input_0 (input); did you mean 'input'?",
    ),
    "input that the module does not have": (
        "body.0.conv2",
        "_input_1",
        "target '_input_1' of module 'body.0.conv2' (QuantConv2d) does not exist; its forward has the inputs "
        "_input_0 (x)",
    ),
    "bias": (
        "body.0.conv2",
        "bias",
        "target 'bias' of module 'body.0.conv2' (QuantConv2d) stays in floating point; delete it (export can put it on "
        "the accumulator's grid)",
    ),
    "second quantizer": (
        "body.0.conv1",
        INPUT,
        "target '_input_0' of module 'body.0.conv1' already has a quantizer; name it only once",
    ),
    "second quantizer of a hook": (
        "body.0.act",
        OUTPUT,
        "target '_output_0' of module 'body.0.act' already has a quantizer; name it only once",
    ),
    "weight of another module": (
        "body.0.act",
        WEIGHT,
        "target 'weight' of module 'body.0.act' (PReLU) cannot be quantized; only those of nn.Conv2d and nn.Linear can",
    ),
    "subclass": ("own", WEIGHT, "a OwnConv cannot be quantized as a convolution; quantize nn.Conv2d modules"),
}


@pytest.mark.parametrize(("name", "target", "message"), REFUSED.values(), ids=REFUSED)
def test_an_impossible_place_is_refused_and_changes_nothing(
    name: str, target: str, message: str, photographs: torch.Tensor
) -> None:
    network = quantized_network().eval()
    network.own = OwnConv(3, 3, 1)
    keys, modules, y = list(network.state_dict()), list(network.modules()), network(photographs)
    with pytest.raises(QuantizationError) as error:
        attach_quantizer(network, name, target, PAMSActivation(4))
    assert str(error.value) == message
    assert list(network.state_dict()) == keys
    assert all(a is b for a, b in zip(network.modules(), modules, strict=True))
    assert torch.equal(network(photographs), y)


def test_a_network_that_is_one_convolution_is_refused() -> None:
    conv = nn.Conv2d(3, 3, 3)
    with pytest.raises(QuantizationError) as error:
        attach_quantizer(conv, "", WEIGHT, PAMSWeight(4))
    assert str(error.value) == (
        "the network itself is a Conv2d and cannot be replaced; wrap it: nn.Sequential(network)"
    )
    assert list(conv.modules()) == [conv]


def test_output_quantizer_before_a_relu_in_place_trains() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
    attach_quantizer(model, "0", "_output_0", PAMSActivation(4))
    model(torch.randn(2, 3, 8, 8) * 20).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0
    assert model[0].output_quantizer.alpha.grad is not None


def test_calibrate_observes_float_activations_and_leaves_the_network_quantizing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    batches = [torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)]
    with torch.no_grad():
        inner = [model[0](batch) for batch in batches]
    attach_quantizer(model, "0", "weight", PAMSWeight(2))
    attach_quantizer(model, "1", "_input_0", PAMSActivation(4, calibration="max"))
    calibrate(model, batches)
    expected = torch.stack([x.abs().flatten(1).amax(1).mean() for x in inner]).mean()
    assert torch.allclose(model[1].input_quantizer.alpha, expected.reshape(1))
    assert not model.training and model[0].weight_quantizer.enabled
    assert model[1].input_quantizer.mode == "quantize"


def test_calibrate_without_a_batch_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    attach_quantizer(model, "0", "_input_0", PAMSActivation(4))
    with pytest.raises(QuantizationError) as caught:
        calibrate(model, [])
    assert str(caught.value) == "there is no batch to calibrate on; give at least one input of the network"
