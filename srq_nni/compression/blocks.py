"""Blocks that need named places for quantizers: a shortcut or a scaled branch is no module until it is made one.

And networks that must compute in the order of the released code, where quantizers follow it.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from srq_nni.quantization.activation import ActivationQuantizer

_WITH_SITES: dict[type[nn.Module], Callable[[nn.Module], nn.Module]] = {}
_IN_RELEASED_ORDER: dict[type[nn.Module], type[nn.Module]] = {}


def register_block(block: type[nn.Module], with_sites: Callable[[nn.Module], nn.Module]) -> None:
    """Say how a block gets its named places.

    Args:
        block: class of the block; subclasses are not touched.
        with_sites: returns a block that computes the same, shares the parameters under the same names, and has a module
            (an ``nn.Identity``) at each place that a config_list should be able to name.
    """
    _WITH_SITES[block] = with_sites


def expose_sites(model: nn.Module) -> nn.Module:
    """Replace, in place, each registered block by the same block with named places; return ``model``."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) in _WITH_SITES:
                setattr(module, name, _WITH_SITES[type(child)](child))
    return model


def register_released_order(network: type[nn.Module], in_released_order: type[nn.Module]) -> None:
    """Name the subclass of a network, without attributes of its own, that computes as the released code orders it."""
    _IN_RELEASED_ORDER[network] = in_released_order


def follow_released_order(model: nn.Module) -> nn.Module:
    """Let ``model`` compute in the order of the released code if one of its quantizers does; return it.

    A difference of one float32 rounding before the first quantizer moves single values to the next level.
    """
    quantizers = (module for module in model.modules() if isinstance(module, ActivationQuantizer))
    if type(model) in _IN_RELEASED_ORDER and any(quantizer.released_order for quantizer in quantizers):
        model.__class__ = _IN_RELEASED_ORDER[type(model)]
    return model
