"""TensorBoard curves of the quantizers: their values, when they are written, and what the other iterations pay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.models import build_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from srq_nni.models.monitor import QuantizerMonitor
from srq_nni.quantization import fake_quantize
from srq_nni.quantization.gate import bound_factors
from srq_nni.quantization.layers import activation_quantizers
from tests.models.steps import DDTB
from tests.models.test_speed import Waits
from tests.sr_data import changed

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
PAMS = {"quantizer": "pams", "bits": 4, "calibration_iters": 2}


def watched(options: dict[str, Any], folder: Path, print_freq: int = 2) -> dict[str, Any]:
    logger = {"print_freq": print_freq, "save_checkpoint_freq": 9, "use_tb_logger": True}
    return {**options, "root_path": str(folder), "logger": logger}


def curves(folder: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(folder / "tb_logger" / "tiny" / "quantizers"))
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def run(
    model: Any, batches: list[dict[str, torch.Tensor]], last: int, print_freq: int = 2
) -> dict[int, dict[str, Any]]:
    """Run BasicSR's loop and return, for each printed iteration, what the quantizers got and had."""
    seen: dict[int, dict[str, Any]] = {}
    for iteration in range(1, last + 1):
        inputs: dict[str, Any] = {}
        handles = [
            quantizer.register_forward_hook(
                lambda q, args, _, name=name, inputs=inputs: inputs.update(
                    {name: (args[0].detach(), [bound.detach().clone() for bound in q.bounds()], logits(q))}
                )
            )
            for name, quantizer in activation_quantizers(model.net_g)
        ]
        model.feed_data(batches[iteration % 2])
        model.optimize_parameters(iteration)
        if iteration % print_freq == 0:
            model.get_current_log()
            seen[iteration] = inputs
        for handle in handles:
            handle.remove()
    return seen


def logits(quantizer: Any) -> torch.Tensor | None:
    given = getattr(quantizer, "gate_logits", None)
    return None if given is None else given.detach()


def test_pams_curves(options: dict[str, Any], batches: list[dict[str, torch.Tensor]], tmp_path: Path) -> None:
    seen = run(build_model(changed(watched(options, tmp_path), "quantization", PAMS)), batches, 6)
    written = curves(tmp_path)
    layers = ["body.0.conv1.input", "body.0.conv2.input"]
    assert set(written) == {f"{kind}/{layer}" for kind in ("alpha", "clipped") for layer in layers}
    for layer in layers:
        assert set(written[f"alpha/{layer}"]) == {2, 4, 6}
        for iteration, inputs in seen.items():
            x, (alpha,), _ = inputs[f"{layer}_quantizer"]
            assert written[f"alpha/{layer}"][iteration] == pytest.approx(alpha.item())
            assert written[f"clipped/{layer}"][iteration] == pytest.approx((x.abs() > alpha).float().mean().item())
    assert any(value > 0 for value in written[f"clipped/{layers[0]}"].values())


def test_ddtb_curves(options: dict[str, Any], batches: list[dict[str, torch.Tensor]], tmp_path: Path) -> None:
    seen = run(build_model(changed(watched(options, tmp_path), "quantization", DDTB)), batches, 8)
    written = curves(tmp_path)
    gated = [tag.removeprefix("gate_upper/") for tag in written if tag.startswith("gate_upper/")]
    assert len(gated) == 1
    assert {tag.split("/")[0] for tag in written} == {"lower", "upper", "clipped", "gate_upper", "gate_lower"}
    for layer in ("body.0.conv1.input", "body.0.conv2.input"):
        assert set(written[f"upper/{layer}"]) == {4, 6, 8}  # iteration 2 only observed
        for iteration in (4, 6, 8):
            x, (lower, upper), z = seen[iteration][f"{layer}_quantizer"]
            assert (z is not None) is (layer in gated)
            if z is not None:
                factors = bound_factors(z)
                for column, kind in enumerate(("upper", "lower")):
                    value = written[f"gate_{kind}/{layer}"][iteration]
                    assert value == pytest.approx(factors[:, column].mean().item())
                if iteration > 4:  # in the static phase the gates are computed and not applied
                    upper, lower = (factors[:, i].view(-1, 1, 1, 1) * b for i, b in enumerate((upper, lower)))
            share = ((x < lower) | (x > upper)).float().mean().item()
            assert written[f"clipped/{layer}"][iteration] == pytest.approx(share)


def test_other_iterations_pay_nothing_and_no_step_waits(
    options: dict[str, Any],
    batches: list[dict[str, torch.Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fake_quantize, "_limits", lambda low, high: (low, high))
    calls: list[str] = []
    record = QuantizerMonitor._record
    monkeypatch.setattr(QuantizerMonitor, "_record", lambda self, *args: calls.append(args[0]) or record(self, *args))
    model = build_model(changed(watched(options, tmp_path, print_freq=3), "quantization", PAMS))
    for iteration in range(1, 7):
        model.feed_data(batches[0])
        with Waits() as waits:
            model.optimize_parameters(iteration)
        assert waits.places == [] or iteration <= 2
        assert len(calls) == 2 * (iteration // 3)
    assert not any(quantizer._forward_hooks for _, quantizer in activation_quantizers(model.net_g))


@pytest.mark.parametrize(
    "change", [{"logger": {"print_freq": 1, "use_tb_logger": False}}, {"name": "debug_tiny"}, {"rank": 1}]
)
def test_it_is_idle_where_basicsr_writes_no_curves(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]], tmp_path: Path, change: dict[str, Any]
) -> None:
    run(build_model({**watched(options, tmp_path), **change}), batches, 3, print_freq=1)
    assert not (tmp_path / "tb_logger").exists()
