"""Explaining what an engine computes differently: codes at ties, and everything else."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import srq_nni
from srq_nni.errors import ExportError
from srq_nni.speedup import Explanation, OtherCodes, engine_codes, explain_difference, ties
from srq_nni.speedup.byte_products import has_vnni
from srq_nni.speedup.simulator import IntegerActivation2d, integer_simulator
from tests.speedup.architectures import quantized
from tests.speedup.networks import edsr, photo, photo_away_from_ties

pytest.importorskip("onnx")

CHECKPOINT = Path(__file__).parents[1] / "data" / "checkpoint_v1.pth"
ENGINES = ("openvino", "onnxruntime")


def explained(network: nn.Module, images: torch.Tensor, engine: str, **options: Any) -> Explanation:
    pytest.importorskip(engine)
    return explain_difference(network, images, engine, threads=1, **options)


def test_distance_is_that_from_the_values_which_get_the_code() -> None:
    ratio = torch.tensor([0.49, 0.51, 0.5, 1.2, 9.0, -9.0, 2.4, 0.0]).double()
    codes = torch.tensor([1.0, 0.0, 1.0, 3.0, 3.0, -2.0, 3.0, 4.0]).double()
    low, high = torch.tensor(-2.0), torch.tensor(3.0)
    expected = [0.01, 0.01, 0.0, 1.3, 0.0, 0.0, 0.1, math.inf]  # the ends get all beyond them; 4 is no code
    assert torch.allclose(ties._steps_from(ratio, codes, low, high), torch.tensor(expected).double())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("arch", "method", "bits", "options"),
    [
        ("EDSR", "pams", 4, {"wiring": "deploy"}),
        ("EDSR", "pams", 4, {"wiring": "deploy", "head": 6, "tail": 6}),  # codes are shuffled, in another order
        ("RDN", "pams", 4, {"wiring": "deploy"}),  # quantizers on the parts of a concatenation as well
        ("SRResNet", "ddtb", 4, {"wiring": "paper", "gated": True}),
        ("SRResNet", "ddtb", 8, {"wiring": "paper", "gated": True}),  # ONNX Runtime's codes of gates are floats
    ],
)
def test_every_quantizer_of_the_simulator_takes_the_codes_of_the_engine(
    engine: str, arch: str, method: str, bits: int, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[str, int] = {}
    take = ties._EngineCodes._take

    def noted(self: Any, name: str, quantizer: IntegerActivation2d, x: torch.Tensor) -> Any:
        chosen = take(self, name, quantizer, x)
        taken[name] = taken.get(name, 0) + (chosen is not None)
        return chosen

    monkeypatch.setattr(ties._EngineCodes, "_take", noted)
    network = quantized(arch, method, bits, **options)
    simulator = integer_simulator(network, engine=engine)
    found = explained(network, photo_away_from_ties(simulator), engine)
    if (
        engine != "openvino" or bits < 8 or has_vnni() is not False
    ):  # else it rounds weights, as test_byte_products shows
        assert found.kind in ("exact", "tie") and found.remaining < 0.01 and found.distance < ties.NEAR
    quantizers = sum(isinstance(module, IntegerActivation2d) for module in simulator.modules())
    assert len(taken) == quantizers and set(taken.values()) == {1}


@pytest.mark.parametrize("engine", ENGINES)
def test_quantizers_are_read_one_by_one_where_showing_all_changes_the_image(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine may fuse otherwise if it shows all; one that then has all codes off by one is not believed."""
    onnx = pytest.importorskip("onnx")
    build, shown = engine_codes.engine_of, []

    def engine_of(name: str, path: Path, *arguments: Any, **options: Any) -> Any:
        built: Any = build(name, path, *arguments, **options)
        shown.append(len(onnx.load(path).graph.output) - 1)
        if shown[-1] > 1:
            outputs = built.outputs
            monkeypatch.setattr(built, "outputs", lambda images: [value + 1 for value in outputs(images)])
        return built

    monkeypatch.setattr(engine_codes, "engine_of", engine_of)
    network = edsr("pams", 4, blocks=2)
    found = explained(network, photo_away_from_ties(integer_simulator(network, engine=engine)), engine)
    assert found.kind == "exact" and found.remaining < 0.01
    assert shown[0] > 1 and shown[1:] == [1] * shown[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_codes_at_ties_are_told_from_other_codes(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulator whose first layer is moved by a hundred-thousandth of a step differs at ties; by a tenth, beyond."""
    network = edsr("ddtb", 6)
    quantizer: Any = integer_simulator(network).get_submodule("body.0.conv1.input_quantizer")

    def moved(steps: float) -> Explanation:
        def simulator(*arguments: Any, **options: Any) -> nn.Module:
            network = integer_simulator(*arguments, **options)
            conv: Any = network.get_submodule("conv_first")
            conv.bias += steps * quantizer.grid.scale
            return network

        with monkeypatch.context() as patch:
            patch.setattr(ties, "integer_simulator", simulator)
            return explained(network, photo(96, 100), engine)

    near, far = moved(1e-5), moved(0.1)
    assert near.kind == "tie" and near.largest > 0.01 > near.remaining
    assert near.distance == pytest.approx(1e-5, abs=1e-5)
    assert far.kind == "unexplained"
    assert far.others[0].name == "body.0.conv1.input" and far.others[0].count > 100
    assert far.others[0].distance == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_tie_inside_a_gate_is_found(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine gets an image on one side of the tie, and the simulator one on the other, a millionth away."""
    network = quantized("EDSR", "ddtb", 4, "paper", gated=True)
    simulator = integer_simulator(network, engine=engine)
    name, quantizer = next(
        (name.removesuffix("_quantizer"), module)
        for name, module in simulator.named_modules()
        if isinstance(module, IntegerActivation2d) and module.image_codes is not None
    )
    ends = photo(32), 1 - photo(32)

    def between(part: float) -> torch.Tensor:
        return torch.lerp(*ends, part)

    def step(part: float) -> float:
        steps: list[float] = []
        handle = quantizer.register_forward_hook(
            lambda module, args, output: steps.append(float(quantizer.grid_of(args[0])[0]))
        )
        with handle, torch.no_grad():
            simulator(between(part))
        return steps[0]

    def jump(part: float, other: float) -> float:
        return abs(step(other) / step(part) - 1)

    low, high = max(itertools.pairwise(part / 64 for part in range(65)), key=lambda parts: jump(*parts))
    while high - low > 4e-6:
        middle = (low + high) / 2
        low, high = max((low, middle), (middle, high), key=lambda parts: jump(*parts))
    assert jump(low, high) > 0.01

    class Beyond(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.simulator = integer_simulator(network, engine=engine)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert torch.equal(images, between(low))
            result: torch.Tensor = self.simulator(between(high))
            return result

        def named_modules(self, *arguments: Any, **options: Any) -> Any:
            return self.simulator.named_modules(*arguments, **options)

    monkeypatch.setattr(ties, "integer_simulator", lambda *arguments, **options: Beyond())
    found = explained(network, between(low), engine)
    assert found.remaining < 0.01
    (of_gate,) = (other for other in found.others if other.name == f"{name}.gate")
    assert of_gate.count == 1 and of_gate.distance < 1e-6
    assert found.kind in ("exact", "tie") and found.distance < 1e-5


def test_distances_in_a_gate_are_those_of_its_nearest_value() -> None:
    network = quantized("EDSR", "ddtb", 4, "paper", gated=True)
    x = torch.randn(3, 16, 8, 8)
    gate = next(module for module in integer_simulator(network).modules() if isinstance(module, ties.TraceableGate))
    means = x.mean((2, 3), keepdim=True)
    ratio = means / gate.means.of(means)[0]
    nearest = (ratio - ratio.floor() - 0.5).abs().flatten(1).amin(1)
    assert (ties._distances_in_gate(gate, x) <= nearest + 1e-6).all()
    assert ties._distances_in_gate(gate, x).shape == (3,)


@pytest.mark.parametrize(
    ("largest", "remaining", "distance", "lossy", "kind"),
    [
        (0.009, 0.009, 0.0, (), "exact"),
        (2.0, 0.001, 1e-5, (), "tie"),
        (2.0, 0.001, 1e-5, ("body.0.conv1",), "tie"),
        (2.0, 0.02, 1e-5, (), "unexplained"),
        (2.0, 0.001, 0.1, (), "unexplained"),
        (2.0, 0.001, 0.1, ("body.0.conv1",), "lossy"),
    ],
)
def test_kinds(largest: float, remaining: float, distance: float, lossy: tuple[str, ...], kind: str) -> None:
    assert Explanation("openvino", largest, remaining, (OtherCodes("a", 1, distance),), lossy).kind == kind


def test_it_says_what_it_found() -> None:
    others = (OtherCodes("body.0.conv1.input", 3, 1.2e-6),)
    assert str(Explanation("openvino", 0.9, 0.0002, others)).splitlines() == [
        "openvino: tie, largest difference 0.9 grey levels, 0.0002 with the codes of the engine",
        "quantizer           other codes  steps from a tie",
        "body.0.conv1.input  3            1.2e-06",
    ]
    assert str(Explanation("openvino", 0.0, 0.0, ())) == (
        "openvino: exact, largest difference 0 grey levels, 0 with the codes of the engine"
    )


def test_a_checkpoint_and_another_range() -> None:
    pytest.importorskip("onnxruntime")
    found = [
        explain_difference(source, photo(32), "onnxruntime", value_range=white)
        for source, white in ((srq_nni.load(CHECKPOINT), 1.0), (CHECKPOINT, 255.0))
    ]
    assert found[0].remaining == pytest.approx(255 * found[1].remaining)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("tensorrt", "engine: 'tensorrt' does not show its codes; give one of openvino, onnxruntime"),
        (
            "openvin",
            "engine: 'openvin' is not known; give one of openvino, onnxruntime, tensorrt; did you mean 'openvino'?",
        ),
    ],
)
def test_other_engines_are_refused(engine: str, message: str) -> None:
    with pytest.raises(ExportError) as error:
        explain_difference(edsr("pams", 4), photo(32), engine)
    assert str(error.value) == message


def test_a_wrong_graph_is_not_called_a_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the Clip the codes of 4 bits run to the ends of the byte."""
    network = edsr("pams", 4)
    quantizer: Any = network.get_submodule("body.0.conv1.input_quantizer")
    quantizer.alpha.data.mul_(0.2)  # many values are beyond it
    monkeypatch.setattr(ties, "export_onnx", _without_clips(ties.export_onnx))
    found = explained(network, photo(32), "onnxruntime")
    assert found.kind == "unexplained" and math.isinf(found.distance)


def _without_clips(export: Any) -> Any:
    import onnx

    def write(model: nn.Module, path: Path, engine: str, **options: Any) -> Any:
        report = export(model, path, engine, **options)
        proto = onnx.load(path)
        for node in proto.graph.node:
            if node.op_type == "Clip":
                node.op_type = "Identity"
                del node.input[1:]
        onnx.save(proto, path)
        return report

    return write
