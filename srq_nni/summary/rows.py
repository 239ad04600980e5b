"""The numbers of a summary: one row a convolution, and the published arithmetic of size and operations (methods.md, 7).

Sizes are counted as both papers count them: the weights **and** biases of quantized convolutions at their bits, all
other parameters at 32, in millions of 32-bit numbers. ``file_bytes`` is what the file of such a network takes, where
biases are float32. BOPs are multiply-accumulates times both bit widths. Gates and bounds stand beside these numbers,
which neither paper counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from srq_nni.quantization.grid import FLOAT_BITS

OUTPUT_SIZE = (720, 1280)  # of the output, at which operations are published


@dataclass(frozen=True)
class EngineVerdict:
    """What one engine does with one convolution.

    Attributes:
        reason: why it does not run in integers; empty if it does.
        reason_if_gated: the same if DDTB gives the quantizers around it a gate; None where no gate can come.
    """

    reason: str
    reason_if_gated: str | None = None

    @property
    def runs_in_integers(self) -> bool:
        """Whether it runs in INT8 as things stand."""
        return not self.reason

    @property
    def depends_on_gate(self) -> bool:
        """Whether a gate, which training may choose, changes that."""
        return self.reason_if_gated is not None and bool(self.reason_if_gated) != bool(self.reason)


@dataclass(frozen=True)
class Convolution:
    """One convolution or linear layer.

    Attributes:
        name: module path.
        weight_bits, activation_bits: None where the tensor stays in floating point.
        source: which quantizer its input comes from: ``own``, the place of another one (``body.0.input``), or empty.
        gate: ``gate`` if that quantizer has one, ``maybe`` if training may give it one, else empty.
        weights, biases: number of parameters.
        macs: multiply-accumulates for an output of 1280x720.
        engines: engine -> verdict.
    """

    name: str
    weight_bits: int | None
    activation_bits: int | None
    source: str
    gate: str
    weights: int
    biases: int
    macs: int
    engines: Mapping[str, EngineVerdict] = field(default_factory=dict)

    @property
    def is_integer(self) -> bool:
        """Whether both operands are quantized."""
        return self.weight_bits is not None and self.activation_bits is not None

    @property
    def bops(self) -> int:
        """Bit operations: multiply-accumulates times the bits of both operands, 32 for floating point."""
        return self.macs * (self.weight_bits or FLOAT_BITS) * (self.activation_bits or FLOAT_BITS)


@dataclass(frozen=True)
class PhaseTime:
    """A phase of training: its name, its iterations, and the measured seconds of one."""

    name: str
    iterations: int
    seconds: float


@dataclass(frozen=True)
class TrainingTime:
    """What training will take, without validation and without waiting for data.

    Attributes:
        phases: in order.
        device: it was measured on.
        batch: images of a step.
        measured: images that were measured; fewer than ``batch`` where whole steps would have taken too long, and then
            a step counts as theirs times ``batch / measured``.
    """

    phases: tuple[PhaseTime, ...]
    device: str
    batch: int
    measured: int

    @property
    def seconds(self) -> float:
        """Seconds of the whole training."""
        return sum(phase.iterations * phase.seconds for phase in self.phases)


@dataclass(frozen=True)
class Summary:
    """All rows and totals of one network; ``str()`` is a table with rows that are alike grouped.

    Attributes:
        subject: file, or name of the network.
        network: architecture.
        method: ``pams``, ``ddtb``, or empty.
        wiring: ``paper``, ``deploy``, ``tensorrt``, ``official``, ``config_list``, or empty.
        scale: of the super-resolution.
        rows: every convolution and linear layer, in the order of the network.
        parameters: of the network, without bounds and gates.
        bounds, gate_parameters: numbers of those.
        gates: how many quantizers have a gate.
        gate_candidates: among how many training will choose them; 0 once they are chosen.
        notes: one sentence for each thing a reader has to know.
        training: estimated time, where it was measured.
    """

    subject: str
    network: str
    method: str
    wiring: str
    scale: int
    rows: tuple[Convolution, ...]
    parameters: int
    bounds: int = 0
    gate_parameters: int = 0
    gates: int = 0
    gate_candidates: int = 0
    notes: tuple[str, ...] = ()
    training: TrainingTime | None = None

    @property
    def quantized(self) -> tuple[Convolution, ...]:
        """Rows with a quantized weight."""
        return tuple(row for row in self.rows if row.weight_bits is not None)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for an output of 1280x720."""
        return sum(row.macs for row in self.rows)

    @property
    def coverage(self) -> float:
        """Share of the multiply-accumulates whose two operands are quantized, 0 to 1."""
        return sum(row.macs for row in self.rows if row.is_integer) / self.macs if self.macs else 0.0

    @property
    def weight_coverage(self) -> float:
        """Share of the multiply-accumulates whose weight is quantized: the greatest possible coverage."""
        return sum(row.macs for row in self.quantized) / self.macs if self.macs else 0.0

    @property
    def bops(self) -> int:
        """Bit operations for an output of 1280x720."""
        return sum(row.bops for row in self.rows)

    @property
    def float_bops(self) -> int:
        """Bit operations of the float network."""
        return self.macs * FLOAT_BITS**2

    @property
    def quantized_parameters(self) -> int:
        """Pq: weights and biases of the convolutions with a quantized weight."""
        return sum(row.weights + row.biases for row in self.quantized)

    @property
    def size(self) -> float:
        """Published size: ``P - Pq + Pq k / 32`` 32-bit numbers, summed over the layers where bits differ."""
        return self.parameters - sum((row.weights + row.biases) * _saved(row) for row in self.quantized)

    @property
    def ratio(self) -> float:
        """Published compression ratio, ``P / size``."""
        return self.parameters / self.size

    @property
    def file_bytes(self) -> float:
        """Bytes of the parameters with weights at their bits and all else, biases and bounds too, in float32."""
        numbers = self.parameters - sum(row.weights * _saved(row) for row in self.quantized)
        return (numbers + self.bounds + self.gate_parameters) * FLOAT_BITS / 8

    @property
    def float_bytes(self) -> int:
        """Bytes of the float network."""
        return self.parameters * FLOAT_BITS // 8

    def __str__(self) -> str:
        from srq_nni.summary.table import render

        return render(self)


def _saved(row: Convolution) -> float:
    """Return the share of 32 bits that a weight of ``row`` saves."""
    return 1 - (row.weight_bits or FLOAT_BITS) / FLOAT_BITS
