"""Which tensors a gate fits: images (N, C, H, W) of one C. All others are no candidates, whatever the share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import srq_nni
from srq_nni.compression.phases import ddtb_quantizers, gate_candidates
from srq_nni.errors import QuantizationError
from srq_nni.quantization.activation import DDTBActivation
from srq_nni.quantization.gate import Gate
from srq_nni.quantization.layers import attach_quantizer, calibrate

NO_GATE = (
    "dynamic_ratio: {} gives no gate: none of its {} quantizers observed images (N, C, H, W) of one number of "
    "channels; give dynamic_ratio: 0, or quantize inputs of convolutions."
)
ENTRIES = [{"op_types": ["Linear"], "quant_dtype": "int4"}]


class Mixer(nn.Module):
    """Two convolutions around a linear layer that reads channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.mix, self.after = nn.Conv2d(3, 5, 1), nn.Linear(5, 5), nn.Conv2d(5, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.mix(self.before(x).movedim(1, -1)).movedim(-1, 1))


def trained(model: nn.Module, entries: list[dict[str, object]], x: torch.Tensor, ratio: float) -> list[str]:
    """Train through all phases and return the names of the gated modules."""
    options = {"calibration_iters": 2, "static_iters": 2, "dynamic_ratio": ratio}
    quantizer = srq_nni.DDTBQuantizer(model, entries, **options)
    optimizer = torch.optim.Adam(quantizer.parameter_groups(lr=1e-4))
    for _ in range(6):
        optimizer.zero_grad()
        quantizer.bound_model.train()(x).square().mean().backward()
        optimizer.step()
    assert quantizer.clock.phase == "final"
    gated = [name for name, q in ddtb_quantizers(model).items() if q.gate is not None]
    return [name.removesuffix("._nni_wrapper.input_quantizer") for name in gated]


@pytest.mark.parametrize("shape", [(2, 8), (2, 5, 8), (2, 3, 5, 8)])
def test_linear_layers_train_without_gates(shape: tuple[int, ...], caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    assert trained(model, ENTRIES, torch.rand(shape), 1.0) == []
    assert [record.getMessage() for record in caplog.records] == [NO_GATE.format(1.0, 2)]


@pytest.mark.parametrize("entry", [{}, {"dynamic_ratio": 0}])
def test_no_share_asks_for_no_gate(entry: dict[str, float], caplog: pytest.LogCaptureFixture) -> None:
    assert trained(nn.Sequential(nn.Linear(8, 8)), [{**ENTRIES[0], **entry}], torch.rand(2, 8), 0.0) == []
    assert not caplog.records


def test_the_share_counts_the_candidates_that_are_left(caplog: pytest.LogCaptureFixture) -> None:
    entries = [{"op_types": ["Conv2d", "Linear"], "quant_dtype": "int4"}]
    x = torch.rand(2, 3, 6, 6)
    assert len(trained(Mixer(), entries, x, 0.5)) == 1
    assert len(trained(Mixer(), entries, x, 0.67)) == 1, "two of three, but one of the two that are left"
    assert trained(Mixer(), entries, x, 1.0) == ["before", "after"]
    assert not caplog.records


def test_a_quantizer_of_other_channels_each_time_gets_no_gate() -> None:
    quantizer = DDTBActivation(4)
    for channels, known in ((6, 6), (6, 6), (3, -1), (3, -1)):
        quantizer.observe(torch.rand(1, channels, 4, 4))
        assert int(quantizer.channels) == known


def test_what_an_older_file_says_of_a_sequence_of_tokens_is_observed_again() -> None:
    quantizer = DDTBActivation(4)
    quantizer.channels.fill_(7)  # axis 1 of (N, tokens, C), as it was stored
    quantizer.observe(torch.rand(2, 7, 5))
    assert int(quantizer.channels) == -1
    assert gate_candidates(nn.ModuleList([quantizer]), 1.0) == {}


def test_inside_the_layers_linear_ones_are_no_candidates_either() -> None:
    model = Mixer()
    for name in ("before", "mix", "after"):
        attach_quantizer(model, name, "_input_0", DDTBActivation(4))
    fitting = ["before.input_quantizer", "after.input_quantizer"]
    assert list(gate_candidates(model, 1.0)) == fitting, "before anything is observed"
    calibrate(model, [torch.rand(1, 3, 5, 5)])
    assert list(gate_candidates(model, 1.0)) == fitting


def test_a_gate_refuses_what_it_does_not_fit() -> None:
    with pytest.raises(QuantizationError) as caught:
        Gate(8)(torch.rand(2, 5, 8))
    assert str(caught.value) == (
        "a gate does not fit a tensor of shape (2, 5, 8); give (N, C, H, W), or train without this gate "
        "(dynamic_ratio: 0)"
    )
