"""Quantizers as single nodes of a traced graph, so that the builder finds each where it sits, on whatever module.

In a copy of the network every quantizer is replaced by a marker, an operation that the exporter writes as one node with
the quantizer's path; the writer then puts integers there. A gate stays beside its marker as plain float operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from srq_nni.quantization.activation import ActivationQuantizer, DDTBActivation
from srq_nni.quantization.fake_quantize import ddtb_codes
from srq_nni.quantization.gate import GATE_BITS, Gate, bound_factors
from srq_nni.quantization.weight import WeightQuantizer
from srq_nni.speedup.integers import is_gated

DOMAIN = "srq"
ACTIVATION, WEIGHT = "Quantize", "Weight"


class _Mark(torch.autograd.Function):
    """Return a copy of ``x``; in a traced graph, one node named after the quantizer."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, kind: str, name: str, *grid: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def symbolic(graph: Any, x: Any, kind: str, name: str, *grid: Any) -> Any:
        return graph.op(f"{DOMAIN}::{kind}", x, *grid, name_s=name).setType(x.type())


class MarkedWeight(nn.Module):
    """Stands for the quantizer of a weight; ``layer`` is the path of the layer."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight, marked."""
        return _Mark.apply(weight, WEIGHT, self.layer)


class MarkedActivation(nn.Module):
    """Stands for an activation quantizer with constant bounds; ``path`` is that of the quantizer."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x``, marked."""
        return _Mark.apply(x, ACTIVATION, self.path)


class MarkedGatedActivation(MarkedActivation):
    """Stands for a gated quantizer: the node has step, smallest and largest code of each image as further inputs."""

    def __init__(self, path: str, quantizer: DDTBActivation) -> None:
        super().__init__(path)
        self.image_codes = ImageCodes(quantizer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` (N, C, H, W), marked."""
        return _Mark.apply(x, ACTIVATION, self.path, *self.image_codes(x))


class ImageCodes(nn.Module):
    """The grid that a gated quantizer gives each image, in operations that can be traced for any batch size."""

    def __init__(self, quantizer: DDTBActivation) -> None:
        super().__init__()
        assert quantizer.gate is not None
        self.gate = TraceableGate(quantizer.gate)
        self.bits, self.limit_levels = quantizer.bits, quantizer.limit_levels
        self.register_buffer("bounds", torch.cat([quantizer.upper.detach(), quantizer.lower.detach()]))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return step, smallest and largest code of each image of ``x`` (N, C, H, W), each (N, 1, 1, 1)."""
        scaled = (bound_factors(self.gate(x)) * self.get_buffer("bounds"))[..., None, None]
        upper, lower = scaled[:, :1], scaled[:, 1:]
        return ddtb_codes(lower, upper, self.bits, limit_levels=self.limit_levels)


class TraceableGate(nn.Module):
    """``Gate`` in eval mode with its ternary weights computed once, in operations that can be traced."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        per_sample = gate.statistics == "per_sample"
        self.means, self.hidden = RangeGrid(per_sample), RangeGrid(per_sample)
        self.norm = gate.norm
        self.register_buffer("reduce", gate.quantized_weight("reduce").detach() + 0.0)  # no -0.0
        self.register_buffer("expand", gate.quantized_weight("expand").detach() + 0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, 2) of ``x`` (N, C, H, W)."""
        hidden = F.conv2d(self.means(x.mean((2, 3), keepdim=True)), self.get_buffer("reduce"))
        hidden = F.relu(self.norm(hidden))
        return F.conv2d(self.hidden(hidden), self.get_buffer("expand")).flatten(1)


class RangeGrid(nn.Module):
    """The grid from smallest to largest value, of each image or of the whole batch, on which a gate computes."""

    def __init__(self, per_sample: bool) -> None:
        super().__init__()
        self.per_sample = per_sample

    def of(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return step, smallest and largest code for ``x`` (N, C, 1, 1), each (N or 1, 1, 1, 1)."""
        axes = (1, 2, 3) if self.per_sample else (0, 1, 2, 3)
        lower, upper = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
        return ddtb_codes(lower, upper, GATE_BITS, limit_levels=self.per_sample)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` on its grid."""
        step, low, high = self.of(x)
        return torch.minimum(torch.maximum(torch.round(x / step), low), high) * step


def mark(network: nn.Module) -> None:
    """Replace every quantizer of ``network`` by its marker, in place."""
    markers: dict[int, nn.Module] = {}
    for path, module in list(network.named_modules(remove_duplicate=False)):
        if isinstance(module, ActivationQuantizer | WeightQuantizer):
            marker = markers.setdefault(id(module), _marker(path, module))
            parent, _, child = path.rpartition(".")
            setattr(network.get_submodule(parent), child, marker)


def remove(network: nn.Module) -> None:
    """Take every quantizer out of ``network``, in place: what is left computes in floating point."""
    for path, module in list(network.named_modules(remove_duplicate=False)):
        if isinstance(module, ActivationQuantizer | WeightQuantizer):
            parent, _, child = path.rpartition(".")
            setattr(network.get_submodule(parent), child, nn.Identity())


def _marker(path: str, quantizer: nn.Module) -> nn.Module:
    if isinstance(quantizer, WeightQuantizer):
        return MarkedWeight(path.rpartition(".")[0])
    if isinstance(quantizer, DDTBActivation) and is_gated(quantizer):
        return MarkedGatedActivation(path, quantizer)
    return MarkedActivation(path)
