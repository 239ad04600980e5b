"""A run that starts from a quantized checkpoint and not from float weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from basicsr.models import build_model

from srq_nni import checkpoint
from srq_nni.quantization.layers import activation_quantizers
from tests.models.steps import DDTB, train
from tests.sr_data import changed


def test_fine_tuning_starts_bounds_and_gates_anew(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]]
) -> None:
    options = changed(options, "quantization", DDTB)
    model = build_model(options)
    train(model, batches, 1, 6)
    model.save(0, 6)
    tuned = build_model(changed(options, "path:pretrain_network_g", f"{options['path']['models']}/net_g_6.pth"))
    assert len(tuned.optimizer_g.param_groups[-1]["params"]) == 4
    train(tuned, batches, 1, 3)
    gates = [p for _, q in activation_quantizers(tuned.net_g) if q.gate is not None for p in q.gate.parameters()]
    assert [id(p) for p in tuned.optimizer_g.param_groups[-1]["params"]] == [id(p) for p in gates]
    assert len(gates) == 4


@pytest.mark.parametrize("block", [{"quantizer": "pams", "bits": 4, "calibration_iters": 3}, DDTB])
def test_fine_tuning_starts_its_statistics_anew(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]], block: dict[str, Any]
) -> None:
    """Bounds are the mean over batches of this run, not of the one that made its start, too."""
    options = changed(options, "quantization", block)
    model = build_model(options)
    train(model, batches, 1, 6)
    model.save(0, 6)
    file = f"{options['path']['models']}/net_g_6.pth"
    stored = checkpoint.read(file)["params"]
    count = next(key for key in stored if key.endswith("statistic.count"))
    assert stored[count] == block["calibration_iters"]
    tuned = build_model(changed(options, "path:pretrain_network_g", file))
    assert torch.equal(tuned.net_g.state_dict()[count], stored[count])
    train(tuned, batches, 1, 1)
    now = tuned.net_g.state_dict()
    assert {int(now[key]) for key in stored if key.endswith((".statistic.count", ".intensity.count"))} == {1}
    assert all((now[key] == 0).all() for key in stored if key.endswith("intensity.squares")), (
        "one batch has no variance"
    )
    resumed = build_model(changed(options, "path:pretrain_network_g", file))
    resumed.set_phase(7)
    assert torch.equal(resumed.net_g.state_dict()[count], stored[count]), "a run that goes on keeps them"
