"""Validation by the first of several processes, which must wait for none of the others: they go on training.

BasicSR validates with the network that DDP has wrapped, unless there is an average. Such a forward pass broadcasts the
buffers, which every quantized network has, and meets the others in whatever they exchange just then.
"""

from __future__ import annotations

import functools
from typing import Any

_installed = False


def install() -> None:
    """Let BasicSR's models validate with the network itself. Safe to call any number of times."""
    global _installed
    if _installed:
        return
    from basicsr.models.sr_model import SRModel

    validate = SRModel.nondist_validation

    @functools.wraps(validate)
    def nondist_validation(self: Any, *args: Any, **settings: Any) -> None:
        wrapped, self.net_g = self.net_g, self.get_bare_model(self.net_g)
        try:
            validate(self, *args, **settings)
        finally:
            self.net_g = wrapped

    SRModel.nondist_validation = nondist_validation
    _installed = True
