"""Any registered network with quantizers inside, as one more entry of BasicSR's registry."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from basicsr.archs import arch_util, edsr_arch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from srq_nni.checkpoint import BLOCKS
from srq_nni.compression.blocks import expose_sites, follow_released_order, register_block, register_released_order
from srq_nni.compression.config import sites_config_list
from srq_nni.compression.options import QuantizationOptions, options_from
from srq_nni.compression.sites import quantization_sites
from srq_nni.errors import OptionError, did_you_mean
from srq_nni.quantization.activation import DDTBActivation
from srq_nni.quantization.layers import attach_quantizer
from srq_nni.quantization.methods import get_method

OWN = ("basicsr", "srq_nni")  # packages whose code is known
LARGEST = 10_000  # of any whole number that describes a network; a million blocks would be built for hours


class ResidualBlockNoBN(arch_util.ResidualBlockNoBN):
    """BasicSR's residual block with two named places for quantizers: ``shortcut`` and (scaled) ``branch``.

    The parameter names stay those of the float block, and so does the class name, which NNI's ``op_types`` reads.
    """

    def __init__(self, num_feat: int = 64, res_scale: float = 1, pytorch_init: bool = False) -> None:
        super().__init__(num_feat, res_scale, pytorch_init)
        self.shortcut = nn.Identity()
        self.branch = nn.Identity()

    @classmethod
    def from_block(cls, block: nn.Module) -> ResidualBlockNoBN:
        """Return a block with sites that shares the convolutions of ``block``."""
        sited = cls.__new__(cls)
        sited.__dict__.update(block.__dict__)
        sited._modules = dict(block._modules)
        sited.shortcut = nn.Identity()
        sited.branch = nn.Identity()
        return sited

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv2(self.relu(self.conv1(x)))
        return self.shortcut(x) + self.branch(out * self.res_scale)


register_block(arch_util.ResidualBlockNoBN, ResidualBlockNoBN.from_block)


class EDSR(edsr_arch.EDSR):
    """BasicSR's EDSR that subtracts its mean from grey levels, as EDSR-PyTorch does, not from values in [0, 1]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.mean.type_as(x)
        shallow = self.conv_first(x * self.img_range - mean * self.img_range)
        feature = self.conv_after_body(self.body(shallow)) + shallow
        return self.conv_last(self.upsample(feature)) / self.img_range + mean


register_released_order(edsr_arch.EDSR, EDSR)


def build_float(network: Mapping[str, Any], where: str = "network_g") -> nn.Module:
    """Build a registered network from its block, which messages call ``where``.

    Unlike BasicSR's ``build_network`` it does not touch the root logger, which a pipeline must set up first.

    Raises:
        OptionError: for an unknown type or arguments that do not fit it.
    """
    arguments = dict(network)
    name = arguments.pop("type", None)
    if not isinstance(name, str) or name not in ARCH_REGISTRY:
        known = [known for known, _ in ARCH_REGISTRY]
        raise OptionError(f"{where}: type {name!r} is not known; give a registered network{did_you_mean(name, known)}")
    for key, value in arguments.items():
        if isinstance(value, int) and value > LARGEST:
            raise OptionError(f"{where}: {key}: {value} is no size of a network; give a number up to {LARGEST}")
    _check_numbers(ARCH_REGISTRY.get(name), arguments, where)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Initializing zero-element tensors")
            return ARCH_REGISTRY.get(name)(**arguments)
    except OptionError:
        raise
    except UserWarning:
        raise OptionError(f"{where}: it has a layer without channels; give numbers above 0 to {name}") from None
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise OptionError(f"{where}: {error}; give the arguments of {name}") from None


def _check_numbers(arch: Callable[..., nn.Module], arguments: Mapping[str, Any], where: str) -> None:
    """Check that a number is given where the network has one by default; many would complain in their first forward."""
    if arch.__module__.split(".")[0] not in OWN:  # a stranger's network may know what to do with None
        return
    parameters = inspect.signature(arch).parameters
    for key, value in arguments.items():
        default = parameters[key].default if key in parameters else None
        if isinstance(default, int | float) and not isinstance(default, bool) and isinstance(value, str | None):
            given = "nothing" if value is None else repr(value)
            raise OptionError(f"{where}: {key}: {given} is not allowed; give a number, such as the default {default}")


def insert_quantizers(model: nn.Module, options: QuantizationOptions) -> nn.Module:
    """Insert the quantizers that ``options`` asks for into ``model``, in place, and return it.

    Raises:
        SRQError: if a pattern, a target or a bit width does not fit; the message names the entry.
    """
    expose_sites(model)
    method = get_method(options.quantizer)
    for site in quantization_sites(model, sites_config_list(model, options), method.name):
        maker = method.weight if site.target == "weight" else method.activation
        settings = dict(site.options)
        share = settings.pop("dynamic_ratio", None)
        quantizer = maker(site.bits, **settings)
        if isinstance(quantizer, DDTBActivation):
            quantizer.gate_share = share
        attach_quantizer(model, site.module, site.target, quantizer)
    return follow_released_order(model)


@ARCH_REGISTRY.register()
def QuantizedNetwork(base: Mapping[str, Any], quantization: Mapping[str, Any]) -> nn.Module:  # noqa: N802
    """Build the network ``base`` (a ``network_g`` block) and insert the quantizers of a ``quantization`` block."""
    network = insert_quantizers(build_float(base), options_from(quantization))
    setattr(network, BLOCKS, (dict(base), dict(quantization)))
    return network
