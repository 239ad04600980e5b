"""Random small networks, exported and compared with the simulator: ``python -m tests.speedup.random_networks``.

``--results FILE`` adds a line of JSON for each comparison; the same command goes on where it was stopped.
``--weight-range learned_per_channel`` gives the same networks weights with a scale for each output channel,
``learned_midrise`` weights without a level at 0.

Each number is a network, drawn from what architectures do: kernel sizes, strides, groups, dilation, padding modes,
biases, batch norms, four activations, sums, concatenations, pixel shuffles; both methods, mixed widths, quantizers on
one operand only, on outputs and on skips, shared ones, bounds on either side of the data, and gates.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srq_nni.errors import ExportError
from srq_nni.quantization.activation import ActivationQuantizer, DDTBActivation
from srq_nni.quantization.gate import Gate
from srq_nni.quantization.layers import activation_quantizers, attach_quantizer, calibrate
from srq_nni.quantization.methods import METHODS
from srq_nni.quantization.weight import MIDRISE, PER_CHANNEL
from srq_nni.speedup import ModelSpeedupONNXRuntime, ModelSpeedupOpenVINO, integer_simulator
from srq_nni.speedup.engine import EngineSpeedup
from srq_nni.speedup.ties import explain_difference
from tests.speedup.architectures import randomize_norms
from tests.speedup.networks import difference, distance_from_ties, photo

ENGINES: dict[str, type[EngineSpeedup]] = {"openvino": ModelSpeedupOpenVINO, "onnxruntime": ModelSpeedupONNXRuntime}
TOLERANCE = 0.01  # grey levels, for an output in [-1, 1]
CROPS = [(20, 40), (130, 150), (240, 260), (350, 370), (60, 300), (300, 60)]


class Block(nn.Module):
    """Convolution, norm and activation, perhaps with a sum or a concatenation around them."""

    def __init__(self, draw: random.Random, channels: int, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels) if draw.random() < 0.25 else nn.Identity()
        kinds = [nn.ReLU, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity]
        self.act = draw.choice(kinds)()
        if isinstance(self.act, nn.PReLU) and draw.random() < 0.5:
            self.act = nn.PReLU(conv.out_channels)
        keeps = conv.stride == (1, 1) and conv.out_channels == channels
        self.join = draw.choice(["sum", "sum", "none"]) if keeps else "none"
        self.join = "concat" if conv.stride == (1, 1) and draw.random() < 0.15 else self.join
        self.scale = draw.choice([1.0, 1.0, 0.1, 0.5])
        self.skip = nn.Identity()
        self.branch = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.norm(self.conv(x)))
        if self.join == "sum":
            return self.skip(x) + self.branch(y * self.scale)
        return torch.cat([self.skip(x), self.branch(y)], 1) if self.join == "concat" else y


def random_network(number: int, weight_range: str | None = None) -> nn.Module:
    """Return network ``number``, calibrated on a photograph, in eval mode; ``weight_range``: instead of the default."""
    draw = random.Random(number)
    torch.manual_seed(number)
    channels = draw.choice([4, 6, 8, 12, 16, 24])
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
    for _ in range(draw.randint(1, 4)):
        out = channels if draw.random() < 0.7 else draw.choice([4, 8, 16])
        block = Block(draw, channels, _convolution(draw, channels, out))
        layers.append(block)
        channels = out + channels if block.join == "concat" else out
    if draw.random() < 0.5:
        factor = draw.choice([2, 2, 3])
        layers += [nn.Conv2d(channels, channels * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
    layers.append(nn.Conv2d(channels, 3, 3, padding=1))
    network = nn.Sequential(*layers)
    randomize_norms(network)
    _quantize(draw, network, {} if weight_range is None else {"weight_range": weight_range})
    calibrate(network, [photo(48, 100)])
    _change_bounds(draw, network)
    return network.eval()


def _convolution(draw: random.Random, channels: int, out: int) -> nn.Conv2d:
    kernel = draw.choice([1, 3, 3, 3, 5])
    groups = draw.choice([g for g in (1, 1, 1, 2, channels) if channels % g == 0 and out % g == 0])
    dilation = draw.choice([1, 1, 1, 2])
    return nn.Conv2d(
        channels,
        out,
        kernel,
        stride=draw.choice([1, 1, 1, 1, 2]),
        padding=dilation * (kernel // 2),
        dilation=dilation,
        groups=groups,
        bias=draw.random() < 0.7,
        padding_mode=draw.choice(["zeros", "zeros", "zeros", "reflect", "replicate"]),
    )


def _quantize(draw: random.Random, network: nn.Module, weights: Mapping[str, str]) -> None:
    """Attach quantizers of one method, at one width or at widths of their own; ``weights``: how those are quantized."""
    method = METHODS[draw.choice(["pams", "ddtb"])]
    common = draw.choice([2, 3, 4, 5, 6, 7, 8])
    mixed = draw.random() < 0.3

    def bits() -> int:
        return draw.randint(2, 8) if mixed else common

    shared: ActivationQuantizer | None = None
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    chosen = [name for name in names[1:-1] if draw.random() < 0.9] or [names[-1]]
    if draw.random() < 0.3:
        chosen = names
    for name in dict.fromkeys(chosen):
        operands = draw.choice(["both"] * 8 + ["input", "weight"])
        if operands != "weight":
            quantizer: Any = method.activation(bits())
            if draw.random() < 0.1 and shared is not None:
                quantizer = shared
            shared = quantizer
            attach_quantizer(network, name, "_input_0", quantizer)
        if operands != "input":
            attach_quantizer(network, name, "weight", method.weight(bits(), **weights))
        if draw.random() < 0.2:
            attach_quantizer(network, name, "_output_0", method.activation(bits()))
    for name, module in list(network.named_modules()):
        if isinstance(module, Block) and module.join != "none":
            for site in ("skip", "branch"):
                if draw.random() < 0.4:
                    attach_quantizer(network, f"{name}.{site}", "_output_0", method.activation(bits()))
        if isinstance(module, nn.PixelShuffle) and draw.random() < 0.3:
            attach_quantizer(network, name, "_output_0", method.activation(bits()))


@torch.no_grad()
def _change_bounds(draw: random.Random, network: nn.Module) -> None:
    """Scale each bound, put some lower bounds to 0, and give some quantizers of DDTB an applied gate."""
    gated = draw.random() < 0.3
    seen = Counter(id(m) for _, m in network.named_modules(remove_duplicate=False))
    shared = {key for key, count in seen.items() if count > 1}  # its channels may differ from use to use
    for _, quantizer in activation_quantizers(network):
        for bound in quantizer.bounds():
            bound.mul_(draw.uniform(0.5, 1.3))
        if not isinstance(quantizer, DDTBActivation):
            continue
        if draw.random() < 0.15:
            quantizer.lower.zero_()
        quantizer.lower.clamp_(max=0)
        quantizer.upper.clamp_(min=1e-3)
        if gated and id(quantizer) not in shared and draw.random() < 0.5:
            gate = Gate(int(quantizer.channels))
            nn.init.normal_(gate.expand.weight, 0, 0.5)
            randomize_norms(gate)
            quantizer.add_gate(gate.eval())
            quantizer.apply_gate(True)


@dataclass
class Outcome:
    """What came out of one network on one engine.

    Attributes:
        kind: ``exact``, ``tie`` or ``lossy`` as in ``ties.Explanation``; ``refused`` (the export said why not);
            ``WRONG``.
        largest: difference in grey levels over the largest output, if that is above 1.
        tie: distance of any value from the nearest tie, in ranges of its grid.
        promised, ran: convolutions in integers, by the report of the export and by the engine.
        message: of a refusal or an error; how far from ties the codes were that differ, and what else did.
    """

    kind: str
    largest: float = 0.0
    tie: float = 1.0
    promised: int = 0
    ran: int = 0
    message: str = ""


def check(number: int, engine: str, folder: Path, weight_range: str | None = None) -> Outcome:
    """Export network ``number`` for ``engine`` and compare the two on two crops of a photograph."""
    network = random_network(number, weight_range)
    try:
        simulator = integer_simulator(network, engine=engine)
    except ExportError as error:  # such as a weight of one sign, whose percentiles leave out 0
        return Outcome("refused", message=str(error))
    distances = [distance_from_ties(simulator, photo(20, *crop)) for crop in CROPS]
    best = sorted(range(len(CROPS)), key=distances.__getitem__)[-2:]
    images = torch.cat([photo(20, *CROPS[place])[..., :18] for place in best])
    tie = min(distance_from_ties(simulator, images), *(distances[place] for place in best))
    with torch.no_grad():
        expected = simulator(images)
    speedup = ENGINES[engine](network, (1, 3, 32, 32), onnx_path=folder / f"{engine}.onnx", threads=1)
    try:
        speedup.compress()
    except ExportError as error:
        return Outcome("refused" if "refuses" not in str(error) else "WRONG", message=str(error))
    report = speedup.report
    assert report is not None
    output, _ = speedup.inference(images)
    largest = float(difference(output, expected).max()) / max(1.0, float(expected.abs().max()))
    promised = sum(layer.runs_in_integers for layer in report.layers)
    ran = speedup.precision_report().integer_convolutions
    found = functools.partial(Outcome, largest=largest, tie=tie, promised=promised, ran=ran)
    if ran < promised:
        return found("WRONG", message=f"{promised} layers promised in integers and {ran} ran so")
    if largest < TOLERANCE:
        return found("exact")
    white = max(1.0, float(expected.abs().max()))
    explanation = explain_difference(network, images, engine, value_range=white, threads=1)
    if explanation.kind in ("tie", "lossy"):
        return found(explanation.kind, message=f"{explanation.distance:.2g} steps, {explanation.remaining:.2g} levels")
    return found("WRONG", message=str(explanation))


def run(numbers: range, results: Path | None, weight_range: str | None = None) -> dict[tuple[int, str], Outcome]:
    """Check ``numbers`` on each engine, but for what ``results`` already holds, and add each outcome to that file."""
    found: dict[tuple[int, str], Outcome] = {}
    for line in results.read_text().splitlines() if results is not None and results.exists() else ():
        entry = json.loads(line)
        if entry.pop("weight_range") != weight_range:
            continue
        place = entry.pop("number"), entry.pop("engine")
        found[place] = Outcome(**entry)
    with tempfile.TemporaryDirectory() as folder:
        for number, engine in itertools.product(numbers, ENGINES):
            if (number, engine) in found:
                continue
            try:
                outcome = check(number, engine, Path(folder), weight_range)
            except Exception as error:  # a crash of one network is a finding, not the end of the run
                outcome = Outcome("WRONG", message=f"{type(error).__name__}: {error}")
            found[number, engine] = outcome
            if results is not None:
                kind = {"number": number, "engine": engine, "weight_range": weight_range}
                entry = {**kind, **dataclasses.asdict(outcome)}
                with results.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
    return {key: outcome for key, outcome in found.items() if key[0] in numbers}


def summary(found: Mapping[tuple[int, str], Outcome]) -> str:
    """Return what came out: each refusal and each error, then a line of counts for each engine."""
    lines = [
        f"{number} {engine} {outcome.kind}: {outcome.largest:.3g} levels, tie at {outcome.tie:.2g}, "
        + outcome.message.replace("\n", " ")[:300]
        for (number, engine), outcome in found.items()
        if outcome.kind in ("WRONG", "refused")
    ]
    for engine in ENGINES:
        outcomes = [outcome for (_, other), outcome in found.items() if other == engine]
        kinds = Counter(outcome.kind for outcome in outcomes)
        promised, ran = (sum(getattr(outcome, name) for outcome in outcomes) for name in ("promised", "ran"))
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        lines.append(f"{engine}: {counts}; {ran} convolutions in integers, {promised} promised")
    return "\n".join(lines)


def main() -> None:
    """Check many networks and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--weight-range", choices=(PER_CHANNEL, MIDRISE))
    parser.add_argument("--results", type=Path, help="file of outcomes, to stop and go on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = run(range(args.start, args.start + args.count), args.results, args.weight_range)
    sys.stdout.write(summary(found) + "\n")
    sys.exit(any(outcome.kind == "WRONG" for outcome in found.values()))


if __name__ == "__main__":
    main()
