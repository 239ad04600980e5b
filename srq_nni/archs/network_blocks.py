"""The blocks of an option file that describe a network: the float one, and how it is quantized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from srq_nni.archs.aliases_arch import is_alias, two_blocks
from srq_nni.compression.options import options_from
from srq_nni.compression.profiles import apply_profile
from srq_nni.errors import OptionError


def network_blocks(opt: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the ``network_g`` block of the float network and the ``quantization`` block, or None without one.

    A network under a name of its own, such as ``PAMS_EDSR``, gives both; a profile is written out.

    Raises:
        OptionError: if a block is missing or is no block.
    """
    network, block = opt.get("network_g"), opt.get("quantization")
    if not isinstance(network, Mapping):
        raise OptionError("key 'network_g' is missing or no block; add it, as in the files of basicsr_configs/")
    if is_alias(network):
        return two_blocks(network)
    if block is None:
        return dict(network), None
    if not isinstance(block, Mapping):
        options_from(block)  # raises, with the sentence that training gives
    return dict(network), apply_profile(block, network.get("type"))
