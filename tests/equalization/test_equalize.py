"""Float networks in other bases: the same function, and less noise from rounding."""

from __future__ import annotations

import pytest
import torch

from srq_nni.archs.quantized_arch import build_float
from srq_nni.equalization import equalize
from srq_nni.equalization.spaces import Freedom, channel_spaces

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2}
QUANTIZATION = {"quantizer": "ddtb", "bits": 8}


def test_the_stream_of_edsr_is_linear_and_its_branches_positive() -> None:
    spaces = channel_spaces(build_float(EDSR))

    assert [(space.freedom, space.channels, len(space.uses)) for space in spaces] == [
        (Freedom.LINEAR, 8, 8),
        (Freedom.POSITIVE, 8, 2),
        (Freedom.POSITIVE, 8, 2),
    ]


@pytest.mark.parametrize("iterations", [0, 3])
def test_edsr_computes_what_it_did(iterations: int) -> None:
    torch.manual_seed(0)
    model, batches = build_float(EDSR).eval(), [torch.rand(2, 3, 12, 12) for _ in range(2)]
    with torch.no_grad():
        before = model(batches[0])
    weights = model.body[0].conv1.weight.clone()

    done = equalize(model, QUANTIZATION, batches, iterations)

    with torch.no_grad():
        assert torch.allclose(model(batches[0]), before, atol=1e-5)
    assert not torch.allclose(model.body[0].conv1.weight, weights)
    assert (done.linear, done.positive) == (1, 2)
