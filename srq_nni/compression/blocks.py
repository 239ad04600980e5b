"""Blocks that need named places for quantizers: a shortcut or a scaled branch is no module until it is made one."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

_WITH_SITES: dict[type[nn.Module], Callable[[nn.Module], nn.Module]] = {}


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
