"""Random but sensible state dicts with every key of the released code, calibrated on a photograph."""

from __future__ import annotations

import re

import torch

from tests.conversion.released import DIV2K_MEAN, HIDDEN, Released, State


class Maker:
    """Collects the tensors of one network.

    Args:
        method: pams, ddtb, or None for the float network.
        seed: of all random numbers.
    """

    def __init__(self, method: str | None, seed: int) -> None:
        self.method, self.state = method, State()
        self.generator = torch.Generator().manual_seed(seed)

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def conv(self, name: str, fan_in: int, out: int, size: int, *, gain: float = 1.0, bias: bool = True) -> None:
        self.state[f"{name}.weight"] = gain * self.random(out, fan_in, size, size) / (fan_in * size**2) ** 0.5
        if bias:
            self.state[f"{name}.bias"] = self.random(out)

    def norm(self, name: str, channels: int, scale: float = 1.0) -> None:
        self.state[f"{name}.weight"] = 0.5 + self.random(channels).abs()
        self.state[f"{name}.bias"] = 0.1 * self.random(channels)
        self.state[f"{name}.running_mean"] = scale * 0.1 * self.random(channels)
        self.state[f"{name}.running_var"] = scale**2 * (0.5 + self.random(channels).abs())
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(1000)

    def quantizer(self, name: str, channels: int, *, calibrated: bool = True) -> None:
        shape = () if calibrated else (1,)  # as the released code leaves it
        if self.method == "pams":
            self.state[f"{name}.alpha"] = torch.full((1,), 10.0)
            self.state[f"{name}.max_val"] = torch.full(shape, 7.25 if calibrated else 1.0)
        if self.method == "ddtb":
            self.state[f"{name}.alpha_upper"] = torch.full((1,), 10.0)
            self.state[f"{name}.alpha_lower"] = torch.full((1,), -10.0)
            self.state[f"{name}.max_val"] = torch.full(shape, 7.25 if calibrated else 0.0)
            self.state[f"{name}.min_val"] = torch.full(shape, -3.5 if calibrated else 0.0)
            self.conv(f"{name}.atten_c.1", channels, HIDDEN, 1, bias=False)
            # Moderate logits: the released code divides by zero where a factor of the bounds underflows to 0.
            self.norm(f"{name}.atten_c.2", HIDDEN, 100.0)
            self.state[f"{name}.atten_c.2.bias"] += 1
            self.conv(f"{name}.atten_c.5", HIDDEN, 2, 1, gain=2.0, bias=False)
            self.state[f"{name}.is_dynamic"] = torch.zeros(1)


def edsr(make: Maker, features: int = 8, blocks: int = 2, scale: int = 2, *, duplicates: bool = True) -> None:
    """EDSR-PyTorch's network; a student has its second convolution at ``body.3`` and act2 under two names."""
    for name, sign in ("sub_mean", -1), ("add_mean", 1):
        make.state[f"{name}.weight"] = torch.eye(3).view(3, 3, 1, 1)
        make.state[f"{name}.bias"] = sign * 255 * torch.tensor(DIV2K_MEAN)
    make.conv("head.0", 3, features, 3)
    for block in range(blocks):
        name = f"body.{block}"
        for number in (1, 2, 3) if make.method else ():
            make.quantizer(f"{name}.quant_act{number}", features)
        make.conv(f"{name}.body.0", features, features, 3)
        if make.method and duplicates:
            tensors = {key: value for key, value in make.state.items() if key.startswith(f"{name}.quant_act2.")}
            make.state |= {key.replace("quant_act2", "body.2"): value for key, value in tensors.items()}
        make.conv(f"{name}.body.{3 if make.method else 2}", features, features, 3)
    make.conv(f"body.{blocks}", features, features, 3)
    if scale == 3:
        make.conv("tail.0.0", features, 9 * features, 3)
    else:
        for stage in range(scale.bit_length() - 1):
            make.conv(f"tail.0.{2 * stage}", features, 4 * features, 3)
    make.conv("tail.1", features, 3, 3, gain=0.1)


def rdn(
    make: Maker, features: int = 8, blocks: int = 2, layers: int = 3, growth: int = 4, scale: int = 2, fused: int = 0
) -> None:
    """RDN; ``convs.0.act`` is never called, and DDTB gives the last gate ``fused`` channels (1024 in its code)."""
    make.conv("SFENet1", 3, features, 3)
    make.conv("SFENet2", features, features, 3)
    wide = features + layers * growth
    for block in range(blocks):
        for layer in range(layers):
            name, width = f"RDBs.{block}.convs.{layer}", features + layer * growth
            make.conv(f"{name}.conv.0", width, growth, 3)
            if make.method:
                make.quantizer(f"{name}.act", width, calibrated=layer > 0)
        if make.method:
            make.quantizer(f"RDBs.{block}.act1", features)
            make.quantizer(f"RDBs.{block}.act2", wide)
        make.conv(f"RDBs.{block}.LFF", wide, features, 1)
    if make.method:
        make.quantizer("act", fused or blocks * features)
    make.conv("GFF.0", blocks * features, features, 1)
    make.conv("GFF.1", features, features, 3)
    if scale == 4:
        make.conv("UPNet.0", features, 4 * growth, 3)
        make.conv("UPNet.2", growth, 4 * growth, 3)
    else:
        make.conv("UPNet.0", features, growth * scale**2, 3)
    make.conv(f"UPNet.{scale if scale == 4 else 2}", growth, 3, 3, gain=0.1)


def srresnet(make: Maker, features: int = 8, blocks: int = 2, scale: int = 2, *, plain: bool = True) -> None:
    """SRResNet with BN; ``plain`` as DDTB has it, without biases and with one slope per PReLU."""
    slopes = 1 if plain else features

    def prelu(name: str) -> None:
        make.state[f"{name}.weight"] = 0.25 + 0.05 * make.random(slopes)

    make.conv("conv_input", 3, features, 9, bias=not plain)
    prelu("relu")
    for block in range(blocks):
        name = f"residual.{block}"
        make.conv(f"{name}.conv1", features, features, 3, bias=False)
        make.norm(f"{name}.in1", features, 100.0)
        prelu(f"{name}.relu")
        make.conv(f"{name}.conv2", features, features, 3, bias=False)
        make.norm(f"{name}.in2", features)
        if make.method:
            make.quantizer(f"{name}.act1", features)
            make.quantizer(f"{name}.act2", features)
    make.conv("conv_mid", features, features, 3, bias=False)
    make.norm("bn_mid", features, 100.0)
    for stage in range(scale // 2):
        make.conv(f"upscale.{3 * stage}", features, 4 * features, 3, bias=not plain)
        prelu(f"upscale.{3 * stage + 2}")
    make.conv("conv_output", features, 3, 9, gain=0.3, bias=not plain)


BUILD = {"edsr": edsr, "rdn": rdn, "srresnet": srresnet}


def released(
    arch: str,
    method: str | None,
    image: torch.Tensor,
    *,
    bits: int = 4,
    gated: bool = False,
    res_scale: float = 1.0,
    seed: int = 0,
    weights: State | None = None,
    **size: int | bool,
) -> Released:
    """Return a network with random weights whose bounds fit ``image`` (N, 3, H, W) in grey levels.

    ``gated`` gives every second quantizer that runs a gate; ``weights`` are those of a float network to take instead of
    random ones.
    """
    make = Maker(method, seed)
    BUILD[arch](make, **size)
    for key, value in (weights or {}).items():
        in_student = re.sub(r"^(body\.\d+\.body)\.2\.", r"\1.3.", key) if method else key
        assert make.state[in_student].shape == value.shape
        make.state[in_student] = value.clone()
    network = Released(arch, method, bits, make.state, res_scale, calibrating=True)
    network(image)
    network.calibrating = False
    if gated:
        for name in network.visited[::2]:
            network.state[f"{name}.is_dynamic"].fill_(1)
    return network
