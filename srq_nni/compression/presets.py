"""Where the published quantizers sit in each known architecture, as patterns over module names (methods.md, 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from srq_nni.errors import OptionError, did_you_mean
from srq_nni.quantization.targets import INPUT, WEIGHT

WIRINGS = ("paper", "deploy", "tensorrt", "official")
Entries = tuple[tuple[str, tuple[str, ...]], ...]
BOTH = (INPUT, WEIGHT)


@dataclass(frozen=True)
class Preset:
    """What is known about one architecture.

    Attributes:
        wirings: wiring -> entries of (pattern over module names, targets).
        feature: module whose input is the feature that SKT compares (the upsampler).
        percentile: M of DDTB's activation bounds.
        weight_percentile: M of DDTB's weights.
        dynamic_ratio: share of activation quantizers that DDTB gives a gate.
        head, tail: patterns of the convolutions before and after the body, which both papers leave in floating point.
        skips: pattern of an entry that quantizes a skip or the branch that is added to it -> pattern of the
            convolutions that read the same quantizer, "" where none does.
    """

    wirings: Mapping[str, Entries]
    feature: str
    percentile: float
    weight_percentile: float
    dynamic_ratio: float
    head: tuple[str, ...]
    tail: tuple[str, ...]
    skips: Mapping[str, str]


_NO_BN_SHARED: Entries = (
    (r"body\.\d+$", (INPUT,)),
    (r"body\.\d+\.conv1$", (WEIGHT,)),
    (r"body\.\d+\.conv2$", BOTH),
)
_NO_BN_BLOCKS: Mapping[str, Entries] = {
    "paper": ((r"body\.\d+\.conv[12]$", BOTH),),
    "deploy": (*_NO_BN_SHARED, (r"body\.\d+\.branch$", (INPUT,))),
    "tensorrt": _NO_BN_SHARED,
    "official": (
        (r"body\.\d+\.shortcut$", (INPUT,)),
        (r"body\.\d+\.conv1$", (WEIGHT,)),
        (r"body\.\d+\.conv2$", BOTH),
        (r"body\.\d+\.branch$", (INPUT,)),
    ),
}
_NO_BN_SKIPS = {r"body\.\d+$": r"body\.\d+\.conv1$", r"body\.\d+\.shortcut$": "", r"body\.\d+\.branch$": ""}
_RDN_OFFICIAL: Entries = (
    (r"RDBs\.\d+$", (INPUT,)),
    (r"RDBs\.\d+\.convs\.(?!0$)\d+$", (INPUT,)),
    (r"RDBs\.\d+\.convs\.\d+\.conv\.0$", (WEIGHT,)),
    (r"RDBs\.\d+\.LFF$", BOTH),
    (r"GFF\.0$", BOTH),
)
_RDN_DEPLOY: Entries = (*_RDN_OFFICIAL, (r"GFF\.1$", BOTH))
_RDN: Mapping[str, Entries] = {
    "paper": ((r"RDBs\.\d+\.convs\.\d+\.conv\.0$", BOTH), (r"RDBs\.\d+\.LFF$", BOTH), (r"GFF\.[01]$", BOTH)),
    "deploy": _RDN_DEPLOY,
    "tensorrt": _RDN_DEPLOY,  # its branches end in floats anyway
    "official": (*_RDN_OFFICIAL, (r"GFF\.1$", (WEIGHT,))),
}
_SRRESNET_PAPER: Entries = ((r"residual\.\d+\.conv[12]$", BOTH),)
_SRRESNET_SHARED: Entries = (
    (r"residual\.\d+$", (INPUT,)),
    (r"residual\.\d+\.conv1$", (WEIGHT,)),
    (r"residual\.\d+\.conv2$", BOTH),
)
_SRRESNET: Mapping[str, Entries] = {
    "paper": _SRRESNET_PAPER,
    "deploy": (*_SRRESNET_SHARED, (r"residual\.\d+\.in2$", ("_output_0",))),
    "tensorrt": _SRRESNET_SHARED,
    "official": _SRRESNET_PAPER,
}

PRESETS: dict[str, Preset] = {
    "EDSR": Preset(
        _NO_BN_BLOCKS,
        "upsample",
        99.0,
        99.0,
        0.3,
        (r"conv_first$",),
        (r"conv_after_body$", r"upsample\.[024]$", r"conv_last$"),
        _NO_BN_SKIPS,
    ),
    "MSRResNet": Preset(
        _NO_BN_BLOCKS,
        "upconv1",
        99.0,
        99.0,
        0.3,
        (r"conv_first$",),
        (r"upconv[12]$", r"conv_hr$", r"conv_last$"),
        _NO_BN_SKIPS,
    ),
    "RDN": Preset(
        _RDN,
        "UPNet",
        95.0,
        100.0,
        0.5,
        (r"SFENet[12]$",),
        (r"UPNet\.[024]$",),
        {r"RDBs\.\d+$": r"RDBs\.\d+\.convs\.0\.conv\.0$"},
    ),
    "SRResNet": Preset(
        _SRRESNET,
        "upscale",
        99.0,
        99.0,
        0.1,
        (r"conv_input$",),
        (r"conv_mid$", r"upscale\.[03]$", r"conv_output$"),
        {r"residual\.\d+$": r"residual\.\d+\.conv1$", r"residual\.\d+\.in2$": ""},
    ),
}


def find_preset(arch_or_model: str | nn.Module) -> Preset:
    """Return the preset of an architecture name or network.

    Raises:
        OptionError: if there is none; the way out is a config_list.
    """
    name = arch_or_model if isinstance(arch_or_model, str) else type(arch_or_model).__name__
    if name not in PRESETS:
        raise OptionError(
            f"network '{name}' has no preset; allowed are {', '.join(PRESETS)}, "
            f"or write a config_list that names its modules{did_you_mean(name, PRESETS)}"
        )
    return PRESETS[name]
