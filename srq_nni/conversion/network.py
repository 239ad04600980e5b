"""The ``network_g`` block of a checkpoint, read from its keys and shapes."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY

from srq_nni.conversion.tensors import State
from srq_nni.errors import CheckpointError, OptionError, listing

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
MEAN_SHIFTS = ("sub_mean", "add_mean")
PUBLISHED_RES_SCALE = {(64, 16): 1, (256, 32): 0.1}  # of EDSR's (num_feat, num_block)
GREY_LEVELS = 255.0


@dataclass(frozen=True)
class Given:
    """What the user says about a network, None where the file or the projects' default decides.

    Attributes:
        res_scale: of EDSR's residual branches.
        img_range: 255 for images in [0, 255], 1 for [0, 1].
        rgb_mean: that EDSR subtracts, in [0, 1].
        body_only: the tail is not that of the architecture and is left out.
    """

    res_scale: float | None = None
    img_range: float | None = None
    rgb_mean: Sequence[float] | None = None
    body_only: bool = False


@dataclass
class Inference:
    """What keys and shapes say.

    Attributes:
        network: the ``network_g`` block.
        range_is_sure: the file or the user says the range of the images.
        as_released: the three projects train such a network, on images in [0, 255].
        notes: what is not in the file and was assumed.
    """

    network: dict[str, Any]
    range_is_sure: bool = False
    as_released: bool = True
    notes: list[str] = field(default_factory=list)


class Shapes:
    """Shapes of a state dict, whose errors name the file."""

    def __init__(self, path: Path, state: State) -> None:
        self.path, self.state = path, state

    def of(self, key: str, dimensions: int) -> tuple[int, ...]:
        """Return the shape of ``key``, which must have that many dimensions."""
        if key not in self.state:
            raise CheckpointError(f"checkpoint '{self.path}' lacks {key}, which tells its size; give a whole file")
        shape = tuple(self.state[key].shape)
        if len(shape) != dimensions or 0 in shape:
            raise CheckpointError(f"checkpoint '{self.path}': {key} has shape {shape}; give the weights of a network")
        return shape

    def count(self, pattern: str) -> int:
        """Return one more than the largest number at the group of ``pattern`` among the keys."""
        numbers = [int(match[1]) for key in self.state if (match := re.match(pattern, key))]
        return max(numbers, default=-1) + 1


def infer(path: Path, arch: str, state: State, given: Given) -> Inference:
    """Infer the network of float parameters with the names of EDSR-PyTorch.

    Args:
        path: for messages.
        arch: EDSR, RDN or SRResNet.
        state: the tensors.
        given: what the user says.

    Raises:
        CheckpointError: if the shapes are those of no such network.
        OptionError: if an option is missing, or contradicts the file.
    """
    _check_given(arch, given)
    shapes = Shapes(path, state)
    if arch == "EDSR":
        return _edsr(shapes, given)
    found = _rdn(shapes, given.body_only) if arch == "RDN" else _srresnet(shapes)
    found.network["img_range"] = GREY_LEVELS if given.img_range is None else float(given.img_range)
    found.range_is_sure = found.range_is_sure or given.img_range is not None
    if given.rgb_mean is not None:
        found.network["rgb_mean"] = [float(value) for value in given.rgb_mean]
    return found


def with_defaults(network: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``network_g`` block with the defaults of its architecture written out."""
    parameters = inspect.signature(ARCH_REGISTRY.get(network["type"])).parameters.values()
    defaults = {item.name: item.default for item in parameters if item.default is not inspect.Parameter.empty}
    return {**defaults, **network}


def _check_given(arch: str, given: Given) -> None:
    if given.img_range is not None and not 0 < given.img_range < math.inf:
        raise OptionError(f"img_range: {given.img_range!r} is not allowed; give a positive number, such as 255 or 1")
    if given.res_scale is not None and not 0 < given.res_scale < math.inf:
        raise OptionError(f"res_scale: {given.res_scale!r} is not allowed; give a positive number, such as 1 or 0.1")
    if given.rgb_mean is not None and (len(given.rgb_mean) != 3 or not all(0 <= m <= 1 for m in given.rgb_mean)):
        raise OptionError(f"rgb_mean: {list(given.rgb_mean)} is not allowed; give three numbers from 0 to 1, red first")
    for key, value, archs in (
        ("res_scale", given.res_scale, ("EDSR",)),
        ("rgb_mean", given.rgb_mean, ("EDSR", "RDN")),
        ("body_only", given.body_only or None, ("RDN",)),
    ):
        if value is not None and arch not in archs:
            raise OptionError(f"{key}: it has no meaning for {arch}; leave it out")


def _edsr(shapes: Shapes, given: Given) -> Inference:
    features, inputs, *_ = shapes.of("head.0.weight", 4)
    outputs, *_ = shapes.of("tail.1.weight", 4)
    if (inputs, outputs) != (3, 3):
        raise CheckpointError(
            f"checkpoint '{shapes.path}' has {inputs} input and {outputs} output channels; BasicSR's EDSR has 3 of each"
        )
    stages = shapes.count(r"tail\.0\.(\d+)\.weight") // 2 + 1
    upscale = 3 if shapes.of("tail.0.0.weight", 4)[0] == 9 * features else 2**stages
    blocks = shapes.count(r"body\.(\d+)\.body\.")
    size = {"num_feat": features, "num_block": blocks, "upscale": upscale}
    found = Inference({"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, **size})
    res_scale = given.res_scale
    if res_scale is None:
        known = PUBLISHED_RES_SCALE.get((features, blocks))
        res_scale = 1 if known is None else known
        source = "EDSR-PyTorch's default" if known is None else "that of the published network of this size"
        found.notes.append(f"res_scale is not in the file: {res_scale} is {source}; --res-scale gives another")
    found.network["res_scale"] = res_scale
    img_range, mean, found.range_is_sure = _mean_shift(shapes, given.img_range, given.rgb_mean)
    found.network |= {"img_range": img_range, "rgb_mean": mean}
    found.as_released = any(mean)
    return found


def _mean_shift(
    shapes: Shapes, img_range: float | None, rgb_mean: Sequence[float] | None
) -> tuple[float, list[float], bool]:
    """Return img_range and rgb_mean, and whether the range is known for sure.

    BasicSR's network computes on ``(x - rgb_mean) * img_range`` and undoes it at the end, so ``sub_mean`` must be
    ``x - img_range * rgb_mean``, and ``add_mean`` the same with a plus.
    """
    keys = [f"{name}.{kind}" for name in MEAN_SHIFTS for kind in ("weight", "bias")]
    if not any(key in shapes.state for key in keys):
        if img_range is None or rgb_mean is None:
            raise OptionError(
                f"checkpoint '{shapes.path}' has no sub_mean, so it does not say which mean its network subtracts; "
                "give --rgb-mean (0.4488 0.4371 0.4040 for DIV2K, 0 0 0 for none) and --img-range (255 or 1)"
            )
        return float(img_range), [float(value) for value in rgb_mean], True
    for key in (key for key in keys if key.endswith("weight")):
        if shapes.of(key, 4) != (3, 3, 1, 1) or not torch.equal(
            shapes.state[key].double().view(3, 3), torch.eye(3).double()
        ):
            raise CheckpointError(
                f"checkpoint '{shapes.path}': {key} is not the identity, as with an rgb_std other than 1, which "
                "BasicSR's EDSR has no place for; fold it into head.0 and tail.1 first"
            )
    (_,), (_,) = (shapes.of(f"{name}.bias", 1) for name in MEAN_SHIFTS)
    subtracted, added = (shapes.state[f"{name}.bias"].double() for name in MEAN_SHIFTS)
    if subtracted.shape != added.shape or not torch.equal(-subtracted, added):
        raise CheckpointError(
            f"checkpoint '{shapes.path}': sub_mean.bias {_numbers(subtracted)} and add_mean.bias {_numbers(added)} do "
            "not undo each other, which BasicSR's EDSR has no place for; give a network of EDSR-PyTorch"
        )
    largest = float(added.abs().max())
    if img_range is None:
        range_, sure = (GREY_LEVELS, largest > 1) if largest > 1 or largest == 0 else (1.0, True)
    else:
        range_, sure = float(img_range), True
    mean = [_mean_of(float(value), range_) for value in added]
    if rgb_mean is not None and any(abs(a - b) > 1e-6 for a, b in zip(mean, rgb_mean, strict=True)):
        raise OptionError(
            f"rgb_mean: {list(rgb_mean)} contradicts checkpoint '{shapes.path}', whose sub_mean.bias / img_range is "
            f"{_numbers(torch.tensor(mean))}; leave it out"
        )
    if not 0 <= max(map(abs, mean)) <= 1:
        raise OptionError(
            f"img_range: {img_range} contradicts checkpoint '{shapes.path}', whose sub_mean.bias is "
            f"{_numbers(subtracted)}; leave it out"
        )
    return range_, mean, sure


def _mean_of(shift: float, img_range: float) -> float:
    """Return the mean that times ``img_range`` is ``shift`` to the last bit of float32; the published one, if it is."""
    exact = shift / img_range
    near = torch.tensor(exact)
    neighbours = [float(near.nextafter(torch.tensor(limit))) for limit in (-math.inf, math.inf)]
    published = [mean for mean in DIV2K_MEAN if math.isclose(mean, exact, rel_tol=1e-6)]
    target = float(torch.tensor(shift))
    return next((m for m in (*published, exact, *neighbours) if float(torch.tensor(m) * img_range) == target), exact)


def _rdn(shapes: Shapes, body_only: bool) -> Inference:
    features, inputs, *_ = shapes.of("SFENet1.weight", 4)
    growth, *_ = shapes.of("RDBs.0.convs.0.conv.0.weight", 4)
    network: dict[str, Any] = {"type": "RDN", "num_in_ch": inputs, "num_out_ch": inputs, "num_feat": features}
    network |= {"num_block": shapes.count(r"RDBs\.(\d+)\."), "num_layer": shapes.count(r"RDBs\.0\.convs\.(\d+)\.")}
    network |= {"num_grow_ch": growth, "upscale": 2}
    if body_only:
        notes = ["upscale and img_range are not known without the tail: set those of the tail you train"]
        return Inference(network, range_is_sure=True, notes=notes)
    last = "UPNet.4.weight" if "UPNet.4.weight" in shapes.state else "UPNet.2.weight"
    first = shapes.of("UPNet.0.weight", 4)
    upscale = 4 if last == "UPNet.4.weight" else math.isqrt(first[0] // growth)
    network |= {"num_out_ch": shapes.of(last, 4)[0], "upscale": upscale}
    expected = (growth * (4 if upscale == 4 else upscale**2), features, 3, 3)
    if upscale not in (2, 3, 4) or first != expected or shapes.count(r"UPNet\.(\d+)\.") - 1 != int(last[6]):
        tail = [key for key in shapes.state if key.startswith("UPNet.")]
        others = len(shapes.state) - len(tail)
        raise CheckpointError(
            f"checkpoint '{shapes.path}' has a tail of its own ({listing(tail, 3)}; UPNet.0.weight is {first}), which "
            f"is not RDN's; give --body-only to convert the other {others} tensors and train a tail for them"
        )
    return Inference(network)


def _srresnet(shapes: Shapes) -> Inference:
    features, inputs, *_ = shapes.of("conv_input.weight", 4)
    outputs, *_ = shapes.of("conv_output.weight", 4)
    slopes = shapes.of("relu.weight", 1)[0]
    upscale = 4 if "upscale.3.weight" in shapes.state else 2
    biased = "conv_input.bias" in shapes.state
    network = {"type": "SRResNet", "num_in_ch": inputs, "num_out_ch": outputs, "num_feat": features}
    network |= {"num_block": shapes.count(r"residual\.(\d+)\."), "upscale": upscale, "bias": biased}
    network["prelu_per_channel"] = slopes > 1
    return Inference(network, as_released=not biased and slopes == 1)


def _numbers(values: torch.Tensor) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values.tolist()) + ")"
