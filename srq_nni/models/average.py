"""The exponential moving average of a quantized network."""

from __future__ import annotations

import torch
from torch import nn

from srq_nni.checkpoint import is_quantizer_key
from srq_nni.compression.phases import clear_gates
from srq_nni.quantization.layers import activation_quantizers, add_stored_gates


@torch.no_grad()
def copy_state(source: nn.Module, average: nn.Module, *, bounds: bool) -> None:
    """Copy what an average would leave behind: all buffers, and the bounds while calibration sets them.

    Batch statistics, calibration and "this gate is applied" are states, of which a mean says nothing. Bounds are
    weights once they train; while they are calibrated, a mean would hold on to their start.
    """
    copies = list(average.buffers())
    if copies:  # a network without activation quantizers may have none
        torch._foreach_copy_(copies, list(source.buffers()))
    if bounds:
        averaged = dict(activation_quantizers(average))
        for name, quantizer in activation_quantizers(source):
            for new, old in zip(quantizer.bounds(), averaged[name].bounds(), strict=True):
                old.copy_(new)


def copy_quantizers(source: nn.Module, average: nn.Module) -> None:
    """Give ``average`` the bounds, gates and statistics of ``source``; its weights stay the average."""
    state = source.state_dict()
    clear_gates(average)
    add_stored_gates(average, state)
    quantizers = {key: value for key, value in state.items() if is_quantizer_key(key)}
    average.load_state_dict({**average.state_dict(), **quantizers})
