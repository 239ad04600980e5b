"""How the released code and srq-nni call the same module: one table per architecture.

Keys of EDSR-PyTorch, PAMS and DDTB agree but for one thing: in a student of EDSR the second convolution of a block
stands at ``body.3`` and not ``body.2``, since its quantizer is registered in between. RDN also goes by lower-case
names (``sfe1``, ``rdbs.0.layers.0.conv``, ``gff``) in other projects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Value = TypeVar("Value")
Rules = tuple[tuple[str, str], ...]  # of (pattern of a name, the other name)

_EDSR: Rules = (
    (r"conv_first", r"head.0"),
    (r"body\.(\d+)\.conv1", r"body.\1.body.0"),
    (r"body\.(\d+)\.conv2", r"body.\1.body.{conv2}"),
    (r"conv_after_body", r"body.{num_block}"),
    (r"upsample\.(\d+)", r"tail.0.\1"),
    (r"conv_last", r"tail.1"),
)
_SITES: Mapping[str, Rules] = {  # quantizers of activations, in the wiring `official`
    "EDSR": (
        (r"body\.(\d+)\.shortcut\.input_quantizer", r"body.\1.quant_act1"),
        (r"body\.(\d+)\.conv2\.input_quantizer", r"body.\1.quant_act2"),
        (r"body\.(\d+)\.branch\.input_quantizer", r"body.\1.quant_act3"),
    ),
    "RDN": (
        (r"RDBs\.(\d+)\.input_quantizer", r"RDBs.\1.act1"),
        (r"RDBs\.(\d+)\.convs\.(\d+)\.input_quantizer", r"RDBs.\1.convs.\2.act"),
        (r"RDBs\.(\d+)\.LFF\.input_quantizer", r"RDBs.\1.act2"),
        (r"GFF\.0\.input_quantizer", r"act"),
    ),
    "SRResNet": ((r"residual\.(\d+)\.conv([12])\.input_quantizer", r"residual.\1.act\2"),),
}
_RDN_FROM_LOWERCASE: Rules = (
    (r"sfe([12])", r"SFENet\1"),
    (r"rdbs\.(\d+)\.layers\.(\d+)\.conv", r"RDBs.\1.convs.\2.conv.0"),
    (r"rdbs\.(\d+)\.lff", r"RDBs.\1.LFF"),
    (r"gff\.([01])", r"GFF.\1"),
    (r"upscale\.(\d+)", r"UPNet.\1"),
)
_RDN_TO_LOWERCASE: Rules = (
    (r"SFENet([12])", r"sfe\1"),
    (r"RDBs\.(\d+)\.convs\.(\d+)\.conv\.0", r"rdbs.\1.layers.\2.conv"),
    (r"RDBs\.(\d+)\.LFF", r"rdbs.\1.lff"),
    (r"GFF\.([01])", r"gff.\1"),
    (r"UPNet\.(\d+)", r"upscale.\1"),
)


@dataclass(frozen=True)
class Naming:
    """Official names of the parts of one of our networks.

    Attributes:
        arch: EDSR, RDN or SRResNet.
        conv2: place of the second convolution in a block of EDSR, 3 in a student.
        num_block: number of blocks, which is part of the name of EDSR's last body convolution.
    """

    arch: str
    conv2: int
    num_block: int

    def parameter(self, ours: str) -> str:
        """Return the official name of one of our float parameters or buffers."""
        if self.arch != "EDSR":
            return ours
        module, _, tensor = ours.rpartition(".")
        name = _renamed(module, _EDSR)
        return f"{name.format(conv2=self.conv2, num_block=self.num_block)}.{tensor}" if name else ours

    def site(self, ours: str) -> str | None:
        """Return the official name of one of our activation quantizers; None if the released code has none there."""
        return _renamed(ours, _SITES[self.arch])

    def second_name(self, official: str) -> str | None:
        """Return the other official name of the same quantizer: EDSR's act2 is registered twice."""
        return _renamed(official, ((r"body\.(\d+)\.quant_act2", r"body.\1.body.2"),))


def from_lowercase(state: Mapping[str, Value]) -> dict[str, Value]:
    """Return a state dict of RDN with lower-case names under those of EDSR-PyTorch."""
    output = "UPNet.4" if any(key.startswith("upscale.2.") for key in state) else "UPNet.2"
    return _renamed_state(state, (*_RDN_FROM_LOWERCASE, ("output", output)))


def to_lowercase(state: Mapping[str, Value]) -> dict[str, Value]:
    """Return a state dict of RDN with the names of EDSR-PyTorch under lower-case ones."""
    output = "4" if any(key.startswith("UPNet.4.") for key in state) else "2"
    return _renamed_state(state, ((rf"UPNet\.{output}", "output"), *_RDN_TO_LOWERCASE))


def _renamed_state(state: Mapping[str, Value], rules: Rules) -> dict[str, Value]:
    renamed = {}
    for key, value in state.items():
        module, _, tensor = key.rpartition(".")
        renamed[f"{_renamed(module, rules) or module}.{tensor}"] = value
    return renamed


def _renamed(name: str, rules: Iterable[tuple[str, str]]) -> str | None:
    for pattern, other in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(other)
    return None
