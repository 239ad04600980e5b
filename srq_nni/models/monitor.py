"""TensorBoard for the quantizers: bounds, gates and the share of clipped activations of each layer.

BasicSR's ``MessageLogger`` prints every value that a model gives it, a line of hundreds here, and keeps its writer to
itself. So these curves have a writer of their own, as the run ``NAME/quantizers`` beside ``NAME``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srq_nni.quantization.activation import ActivationQuantizer, DDTBActivation
from srq_nni.quantization.gate import bound_factors
from srq_nni.quantization.layers import activation_quantizers


class QuantizerMonitor:
    """Looks at the quantizers in those iterations that BasicSR prints, and costs nothing in the others.

    Args:
        opt: options of the run; without ``logger: use_tb_logger``, in a ``debug`` run and on ranks above 0 it is idle.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        logger = opt.get("logger") or {}
        wanted = logger.get("use_tb_logger") and "debug" not in opt["name"] and opt.get("rank", 0) == 0
        self._every = int(logger["print_freq"]) if wanted and "root_path" in opt else 0
        self._folder = Path(opt.get("root_path", ".")) / "tb_logger" / opt["name"] / "quantizers"
        self._writer: Any = None
        self._iteration = 0
        self._values: dict[str, torch.Tensor] = {}

    @contextmanager
    def watching(self, net: nn.Module, iteration: int) -> Iterator[None]:
        """Record the forward passes of this block if the iteration will be printed; nothing waits for the device."""
        handles = []
        self._values = {}
        if self._every and iteration % self._every == 0:
            self._iteration = iteration
            for name, quantizer in activation_quantizers(net):
                layer = name.removesuffix("_quantizer")
                handles.append(quantizer.register_forward_hook(lambda q, a, _, at=layer: self._record(at, q, a[0])))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _record(self, layer: str, quantizer: ActivationQuantizer, x: torch.Tensor) -> None:
        if quantizer.mode not in ("quantize", "calibrate"):
            return
        named = {name: bound.detach().clone() for name, bound in quantizer.named_parameters(recurse=False)}
        lower, upper = (named["lower"], named["upper"]) if "lower" in named else (-named["alpha"], named["alpha"])
        self._values |= {f"{name}/{layer}": bound for name, bound in named.items()}
        if isinstance(quantizer, DDTBActivation) and quantizer.gate_logits is not None:
            factors = bound_factors(quantizer.gate_logits)
            self._values |= {f"gate_upper/{layer}": factors[:, 0].mean(), f"gate_lower/{layer}": factors[:, 1].mean()}
            applied = torch.where(quantizer.gate_is_applied, factors, 1.0).view(-1, 2, *[1] * (x.ndim - 1))
            upper, lower = applied[:, 0] * upper, applied[:, 1] * lower
        self._values[f"clipped/{layer}"] = ((x < lower) | (x > upper)).float().mean()

    def write(self) -> None:
        """Write what the last watched iteration showed, once; only here the host waits for the device."""
        if not self._values:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(log_dir=str(self._folder))
        numbers = torch.stack([value.float().reshape(()) for value in self._values.values()]).tolist()
        for tag, number in zip(self._values, numbers, strict=True):
            self._writer.add_scalar(tag, number, self._iteration)
        self._writer.flush()
        self._values = {}
