"""A few of the random networks in CI; ``python -m tests.speedup.random_networks --count 1000`` runs them at length."""

from __future__ import annotations

from pathlib import Path

import pytest

from srq_nni.speedup.byte_products import inexact_without_vnni
from srq_nni.speedup.engine_rules import get_rules
from srq_nni.speedup.graph import build_graph
from tests.speedup import random_networks
from tests.speedup.random_networks import ENGINES, Outcome, check, random_network

FOUND = {
    30: "ONNX Runtime rounded float weights between two quantizers to int8 by itself",
    65: "the same, where it first folds a batch norm into the convolution",
    305: "OpenVINO carries integers through a ReLU and a Pad into a layer whose weights it halves",
    336: "the same through a PixelShuffle",
    82: "OpenVINO gave both readers of a convolution without bias the scale of one",
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", [*range(12), *FOUND])
def test_random_networks_are_exact_or_say_why_not(number: int, engine: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip(engine)
    outcome = check(number, engine, tmp_path)
    assert outcome.kind in ("exact", "tie", "near", "lossy", "refused"), outcome


@pytest.mark.parametrize("number", [305, 336])
def test_weights_that_read_codes_through_other_nodes_are_doubled(number: int, tmp_path: Path) -> None:
    """Of few bits, so exact on every CPU; while the weights were odd, one without VNNI was 3.4 and 5.7 levels off."""
    pytest.importorskip("onnx")
    rules = get_rules("openvino")
    proto, _ = build_graph(random_network(number), rules)
    assert inexact_without_vnni(proto, rules) == ()
    pytest.importorskip("openvino")
    assert check(number, "openvino", tmp_path).kind in ("exact", "tie")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("weight_range", ["learned_per_channel", "learned_midrise"])
@pytest.mark.parametrize("number", range(12))
def test_other_weights_are_exact_too(number: int, weight_range: str, engine: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip(engine)
    outcome = check(number, engine, tmp_path, weight_range)
    assert outcome.kind in ("exact", "tie", "lossy", "refused"), outcome


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []

    def fake(number: int, engine: str, folder: Path, weight_range: str | None) -> Outcome:
        checked.append(number)
        return Outcome("exact" if number else "tie", 0.5, promised=2, ran=2)

    monkeypatch.setattr(random_networks, "check", fake)
    random_networks.run(range(1), tmp_path / "results.jsonl")
    found = random_networks.run(range(3), tmp_path / "results.jsonl")
    assert checked == [0, 0, 1, 1, 2, 2] and len(found) == 6
    random_networks.run(range(1), tmp_path / "results.jsonl", "learned_midrise")
    assert checked[6:] == [0, 0]  # other networks, though their number is done
    assert random_networks.summary(found).splitlines() == [
        f"{engine}: exact 2, tie 1; 6 convolutions in integers, 6 promised" for engine in ENGINES
    ]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_hundred_random_networks(engine: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip(engine)
    outcomes = {number: check(number, engine, tmp_path) for number in range(12, 112)}
    assert not {number: outcome for number, outcome in outcomes.items() if outcome.kind == "WRONG"}
    assert sum(outcome.kind == "exact" for outcome in outcomes.values()) > 60
