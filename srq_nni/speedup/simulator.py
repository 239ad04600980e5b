"""The reference for every engine: a network whose quantized convolutions compute in integers.

The usual fake quantization multiplies rounded floats, whose products are rounded again in an order that depends on the
kernel. Here the codes themselves are convolved. They are integers held in floating point, and every partial sum stays
below the limit up to which the dtype is exact, so the result does not depend on order, batch or number of threads.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from srq_nni.quantization.layers import QuantConv2d
from srq_nni.speedup.integers import FLOAT32_LIMIT, IntegerConv, read_convolutions


class IntegerConv2d(nn.Module):
    """``conv(codes(x), weight codes) * product + bias``, or ``(conv(...) + bias codes) * product``.

    Only the final multiplication and addition round, each once, to float32.
    The accumulator is exact. It runs in float32 where its certified bound is below 2^24, and in float64, rounded to
    the nearest integer, where the bound is larger or the device may choose a Winograd or FFT kernel (any GPU).
    """

    weight_codes: torch.Tensor
    bias: torch.Tensor | None
    bias_codes: torch.Tensor | None
    input_scale: torch.Tensor
    product: torch.Tensor

    def __init__(self, conv: QuantConv2d, integers: IntegerConv) -> None:
        super().__init__()
        assert integers.input is not None and integers.weight_codes is not None and integers.product is not None
        self.grid = integers.input
        self.exact_in_float32 = integers.bound < FLOAT32_LIMIT
        shell = copy.copy(conv)  # gives stride, padding and padding mode; its parameters are never used
        shell._parameters, shell._modules = {"weight": None, "bias": None}, {}
        self._shell = (shell,)  # in a tuple, so that it is not a submodule
        device = conv.weight.device
        bias_codes = None if integers.bias_codes is None else integers.bias_codes.double().view(-1, 1, 1).to(device)
        bias = None if integers.bias is None else integers.bias.view(-1, 1, 1).to(device)
        self.register_buffer("weight_codes", integers.weight_codes.double().to(device), persistent=False)
        self.register_buffer("bias_codes", bias_codes, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("input_scale", torch.tensor(self.grid.scale, device=device), persistent=False)
        self.register_buffer("product", torch.tensor(integers.product, device=device), persistent=False)

    def input_codes(self, x: torch.Tensor) -> torch.Tensor:
        """Return the codes of ``x`` (N, C, H, W) as integers held in float32."""
        return torch.div(x, self.input_scale).round_().clamp_(self.grid.minimum, self.grid.maximum)

    def accumulate(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the exact accumulator of input codes, plus ``bias_codes`` if there are any.

        The result holds integers in float32 or float64.
        """
        dtype = torch.float32 if self.exact_in_float32 and codes.device.type == "cpu" else torch.float64
        with torch.autocast(codes.device.type, enabled=False), torch.backends.nnpack.flags(enabled=False):
            total = self._shell[0]._conv_forward(codes.to(dtype), self.weight_codes.to(dtype), None)
        if dtype == torch.float64:
            total = total.round_()
        return total if self.bias_codes is None else total.add_(self.bias_codes.to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the convolution of ``x`` (N, C, H, W, float32) in the unit of the float network, float32."""
        y = self.accumulate(self.input_codes(x.float())).float() * self.product
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"codes {self.grid.minimum}..{self.grid.maximum}, scale={self.grid.scale:.4g}"


def integer_simulator(model: nn.Module, *, integer_bias: bool = False) -> nn.Module:
    """Return a float32 copy of ``model`` in eval mode that computes what an integer engine computes.

    A convolution with both operands quantized becomes an ``IntegerConv2d``. One with only one of them quantized, and
    quantizers on other modules, keep their fake quantization, which engines also evaluate in floating point.
    ``model`` is not changed. The copy is for inference: it gives no gradient to weights or bounds.

    Raises:
        ExportError: if no convolution is quantized, a quantizer is gated or not in use, or a grid is degenerate.
    """
    network = copy.deepcopy(model).float().eval().requires_grad_(False)
    for name, integers in read_convolutions(network, integer_bias=integer_bias).items():
        if not integers.is_integer:
            continue
        conv = network.get_submodule(name)
        assert isinstance(conv, QuantConv2d)
        for path, module in list(network.named_modules(remove_duplicate=False)):
            if module is conv:
                parent, _, child = path.rpartition(".")
                setattr(network.get_submodule(parent), child, IntegerConv2d(conv, integers))
    return network
