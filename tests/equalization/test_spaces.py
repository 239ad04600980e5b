"""Which tensors of a network may change their basis, and that everything else keeps it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from srq_nni.archs.quantized_arch import build_float
from srq_nni.equalization.spaces import Freedom, Use, channel_spaces
from srq_nni.errors import QuantizationError
from tests.equalization.networks import EDSR, FIXED, LINEAR, MSRRESNET, POSITIVE, RDN, SRRESNET, Between

L, P = Freedom.LINEAR, Freedom.POSITIVE


@pytest.mark.parametrize(
    ("network", "wanted"),
    [
        (EDSR, {(L, 8, 8): 1, (P, 8, 2): 2}),
        (MSRRESNET, {(P, 8, 6): 1, (P, 8, 2): 3}),
        (SRRESNET, {(P, 8, 8): 1, (P, 8, 2): 2}),
        # what is shared by head and tail, the stream of the blocks, between the fusions, and growth by its readers
        (RDN, {(L, 8, 4): 1, (L, 8, 11): 1, (L, 8, 2): 1, (P, 4, 3): 2, (P, 4, 2): 2}),
    ],
    ids=["EDSR", "MSRResNet", "SRResNet", "RDN"],
)
def test_the_known_networks(network: dict[str, Any], wanted: dict[tuple[Freedom, int, int], int]) -> None:
    spaces = channel_spaces(build_float(network))

    assert Counter((space.freedom, space.channels, len(space.uses)) for space in spaces) == wanted


def test_the_stream_of_edsr_is_made_and_read_by_these() -> None:
    made = ["conv_first", "body.0.conv2", "body.1.conv2", "conv_after_body"]
    read = ["body.0.conv1", "body.1.conv1", "conv_after_body", "upsample.0"]

    (stream,) = (space for space in channel_spaces(build_float(EDSR)) if space.freedom == L)

    assert set(stream.uses) == {Use(name, "rows") for name in made} | {Use(name, "columns") for name in read}


def test_a_concatenation_is_read_at_an_offset() -> None:
    spaces = channel_spaces(Between(lambda net, x: torch.cat((x, net.relu(net.middle(x))), 1), channels=8))

    assert [(space.freedom, space.uses[-1]) for space in spaces] == [
        (L, Use("last", "columns", 0)),
        (P, Use("last", "columns", 4)),
    ]


def test_batch_norm_makes_channels_one_by_one() -> None:
    (space,) = channel_spaces(Between(lambda net, x: net.norm(x)))

    assert space.freedom == P
    assert space.uses == (Use("norm", "factors"), Use("last", "columns"))


@pytest.mark.parametrize("step", LINEAR.values(), ids=LINEAR)
def test_linear_steps_leave_any_basis(step: Any) -> None:
    assert {space.freedom for space in channel_spaces(Between(step))} == {L}


@pytest.mark.parametrize("step", POSITIVE.values(), ids=POSITIVE)
def test_rectified_tensors_leave_factors(step: Any) -> None:
    assert P in {space.freedom for space in channel_spaces(Between(step))} <= {L, P}


@pytest.mark.parametrize("step", FIXED.values(), ids=FIXED)
def test_other_steps_leave_nothing(step: Any) -> None:
    assert channel_spaces(Between(step)) == []


def test_the_model_itself_is_not_touched() -> None:
    model = build_float(EDSR)
    mean = model.mean

    channel_spaces(model)

    assert model.mean is mean  # tracing stores a proxy there


def test_a_forward_that_depends_on_values_is_one_sentence() -> None:
    class Choosing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(
        QuantizationError,
        match=r"^the forward pass of Choosing cannot be traced \(symbolically traced variables cannot be used as "
        r"inputs to control flow\); equalize only networks that compute the same steps for every image$",
    ):
        channel_spaces(Choosing())
