"""The networks of the released PAMS and DDTB code as functions of a state dict, written from the papers' formulas.

Nothing of srq_nni is used here: these are what a converted checkpoint is compared with. Images are in grey levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

State = dict[str, torch.Tensor]
HIDDEN, GATE_BITS, DIV2K_MEAN = 32, 2, (0.4488, 0.4371, 0.4040)


def zero_anchored(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> torch.Tensor:
    """DDTB: clamp, then an affine grid whose zero point is an integer; the code itself is not clamped."""
    s = (2**bits - 1) / (upper - lower)
    z = torch.round(s * lower) + 2 ** (bits - 1)
    return (torch.round(s * torch.max(torch.min(x, upper), lower) - z) + z) / s


def symmetric(x: torch.Tensor, largest: torch.Tensor, bits: int) -> torch.Tensor:
    """PAMS: 2n + 1 levels between -largest and largest."""
    n = 2 ** (bits - 1) - 1
    return torch.round(x * n / largest) * largest / n


def percentile(x: torch.Tensor, share: float) -> torch.Tensor:
    """Linear interpolation between order statistics, as numpy does it; (1,)."""
    ordered = x.flatten().double().sort().values
    position = share / 100 * (len(ordered) - 1)
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    return (low + (high - low) * (position - math.floor(position))).to(x.dtype).reshape(1)


@dataclass
class Released:
    """One network: ``arch`` in lower case, ``method`` pams, ddtb or None for the float network (the teacher)."""

    arch: str
    method: str | None
    bits: int
    state: State
    res_scale: float = 1.0
    calibrating: bool = False
    visited: list[str] = field(default_factory=list)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the enlarged images (N, 3, sH, sW) of images (N, 3, H, W), both in the range the network has."""
        with torch.no_grad():
            return {"edsr": self.edsr, "rdn": self.rdn, "srresnet": self.srresnet}[self.arch](x)

    def double(self) -> Released:
        """Return the same network in float64."""
        state = {key: value.double() if value.is_floating_point() else value for key, value in self.state.items()}
        return Released(self.arch, self.method, self.bits, state, self.res_scale)

    def has(self, key: str) -> bool:
        return key in self.state

    def conv(self, x: torch.Tensor, name: str, *, quantized: bool = False) -> torch.Tensor:
        weight = self.state[f"{name}.weight"]
        if quantized and self.method and not self.calibrating:
            weight = self.on_weight_grid(weight)
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def on_weight_grid(self, weight: torch.Tensor) -> torch.Tensor:
        if self.method == "pams":
            return symmetric(weight, weight.abs().max() + 1e-8, self.bits)
        if self.arch == "rdn":
            return zero_anchored(weight, weight.min(), weight.max(), self.bits)
        return zero_anchored(weight, percentile(weight, 1), percentile(weight, 99), self.bits)

    def act(self, x: torch.Tensor, name: str) -> torch.Tensor:
        if self.method is None:
            return x
        if self.calibrating:
            self.set_bounds(x, name)
            return x
        if self.method == "pams":
            alpha = self.state[f"{name}.alpha"]
            return symmetric(torch.max(torch.min(x, alpha), -alpha), alpha, self.bits)
        upper, lower = self.state[f"{name}.alpha_upper"], self.state[f"{name}.alpha_lower"]
        if self.state[f"{name}.is_dynamic"]:
            beta = 2 * torch.sigmoid(self.gate(x, f"{name}.atten_c"))
            upper, lower = beta[:, :1] * upper, beta[:, 1:] * lower
        return zero_anchored(x, lower, upper, self.bits)

    def gate(self, x: torch.Tensor, name: str) -> torch.Tensor:
        def ternary(key: str) -> torch.Tensor:
            weight = self.state[f"{name}.{key}.weight"]
            return symmetric(weight, weight.abs().max() + 1e-8, GATE_BITS)

        def on_own_grid(values: torch.Tensor) -> torch.Tensor:
            return zero_anchored(values, values.min(), values.max(), GATE_BITS)

        norm = {key: self.state[f"{name}.2.{key}"] for key in ("running_mean", "running_var", "weight", "bias")}
        hidden = F.conv2d(on_own_grid(x.mean((2, 3), keepdim=True)), ternary("1"))
        return F.conv2d(on_own_grid(F.relu(F.batch_norm(hidden, **norm))), ternary("5"))

    def set_bounds(self, x: torch.Tensor, name: str) -> None:
        self.visited.append(name)
        if self.method == "pams":
            self.state[f"{name}.alpha"].copy_(0.8 * x.abs().amax((1, 2, 3)).mean())
        else:
            self.state[f"{name}.alpha_upper"].copy_(percentile(x, 99)[0])
            self.state[f"{name}.alpha_lower"].copy_(percentile(x, 1)[0] - 0.01)

    def edsr(self, x: torch.Tensor) -> torch.Tensor:
        second = 3 if self.has("body.0.body.3.weight") else 2
        shallow = self.conv(self.conv(x, "sub_mean"), "head.0")
        feature, block = shallow, 0
        while self.has(f"body.{block}.body.0.weight"):
            name = f"body.{block}"
            branch = F.relu(self.conv(feature, f"{name}.body.0", quantized=True))
            branch = self.conv(self.act(branch, f"{name}.quant_act2"), f"{name}.body.{second}", quantized=True)
            shortcut = self.act(feature, f"{name}.quant_act1")
            feature = self.act(branch * self.res_scale, f"{name}.quant_act3") + shortcut
            block += 1
        feature = self.conv(feature, f"body.{block}") + shallow
        factor = 3 if len(self.state["tail.0.0.weight"]) == 9 * len(self.state["head.0.weight"]) else 2
        for stage in (0, 2, 4):
            if self.has(f"tail.0.{stage}.weight"):
                feature = F.pixel_shuffle(self.conv(feature, f"tail.0.{stage}"), factor)
        return self.conv(self.conv(feature, "tail.1"), "add_mean")

    def rdn(self, x: torch.Tensor) -> torch.Tensor:
        shallow = self.conv(x, "SFENet1")
        feature, outputs = self.conv(shallow, "SFENet2"), []
        while self.has(f"RDBs.{len(outputs)}.LFF.weight"):
            feature = self.dense_block(feature, f"RDBs.{len(outputs)}")
            outputs.append(feature)
        fused = self.conv(self.act(torch.cat(outputs, 1), "act"), "GFF.0", quantized=True)
        feature = self.conv(fused, "GFF.1", quantized=True) + shallow
        growth, first = len(self.state["RDBs.0.convs.0.conv.0.bias"]), len(self.state["UPNet.0.bias"])
        if not self.has("UPNet.4.weight"):
            feature = F.pixel_shuffle(self.conv(feature, "UPNet.0"), round(math.sqrt(first / growth)))
            return self.conv(feature, "UPNet.2")
        for stage in (0, 2):
            feature = F.pixel_shuffle(self.conv(feature, f"UPNet.{stage}"), 2)
        return self.conv(feature, "UPNet.4")

    def dense_block(self, x: torch.Tensor, name: str) -> torch.Tensor:
        entry = carried = self.act(x, f"{name}.act1")
        layer = 0
        while self.has(f"{name}.convs.{layer}.conv.0.weight"):
            if layer > 0:  # the quantized concatenation is what is carried on
                carried = self.act(carried, f"{name}.convs.{layer}.act")
            grown = F.relu(self.conv(carried, f"{name}.convs.{layer}.conv.0", quantized=True))
            carried = torch.cat((carried, grown), 1)
            layer += 1
        return self.conv(self.act(carried, f"{name}.act2"), f"{name}.LFF", quantized=True) + entry

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.batch_norm(
            x, *(self.state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        )

    def prelu(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.prelu(x, self.state[f"{name}.weight"])

    def srresnet(self, x: torch.Tensor) -> torch.Tensor:
        shallow = feature = self.prelu(self.conv(x, "conv_input"), "relu")
        block = 0
        while self.has(f"residual.{block}.conv1.weight"):
            name = f"residual.{block}"
            branch = self.conv(self.act(feature, f"{name}.act1"), f"{name}.conv1", quantized=True)
            branch = self.act(self.prelu(self.norm(branch, f"{name}.in1"), f"{name}.relu"), f"{name}.act2")
            feature = self.norm(self.conv(branch, f"{name}.conv2", quantized=True), f"{name}.in2") + feature
            block += 1
        feature = self.norm(self.conv(feature, "conv_mid"), "bn_mid") + shallow
        for stage in (0, 3):
            if self.has(f"upscale.{stage}.weight"):
                feature = F.pixel_shuffle(self.conv(feature, f"upscale.{stage}"), 2)
                feature = self.prelu(feature, f"upscale.{stage + 2}")
        return self.conv(feature, "conv_output")
