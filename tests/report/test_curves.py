"""Curves out of BasicSR's log, TensorBoard's files and checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from srq_nni import checkpoint
from srq_nni.report.curves import quantizer_curves, read_logs
from srq_nni.report.experiment import open_experiment

LOG = """\
2026-11-25 07:23:30,747 INFO: Start training from epoch: 0, iter: 0
2026-11-25 07:23:31,684 INFO: [tiny..][epoch:  0, iter:   1,000, lr:(2.000e-04,9.998e-03,2.000e-04,)] \
[eta: 0:00:06, time (data): 0.094 (0.015)] l_pix: 1.9478e-02 l_skt: nan\x20
2026-11-25 07:23:37,084 INFO: Validation Set5
\t # psnr: 37.9148\tBest: 37.9148 @ 1040 iter
\t # ssim: 0.9491\tBest: 0.9491 @ 1040 iter

2026-11-25 07:23:38,271 INFO: [tiny..][epoch:  0, iter:   1,100, lr:(1.000e-04,9.941e-03,1.000e-04,)] \
[eta: 0:00:09, time (data): 0.127 (0.005)] l_pix: 1.0646e-02\x20
2026-11-25 07:23:48,361 INFO: End of training. Time consumed: 0:00:17
2026-11-25 07:23:49,520 INFO: Validation Set5
\t # psnr: 38.1580\tBest: 38.1580 @ 1122 iter
"""


def test_values_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "train_a.log").write_text(LOG)
    curves = read_logs([tmp_path / "train_a.log"], validate_every=520)
    assert curves.losses["l_pix"] == {1000: 0.019478, 1100: 0.010646}
    assert list(curves.losses["l_skt"]) == [1000]
    assert curves.rates["bounds"] == {1000: 9.998e-3, 1100: 9.941e-3}
    assert list(curves.rates) == ["network", "bounds", "gates"]
    assert curves.metrics == {"Set5 psnr": {1040: 37.9148}, "Set5 ssim": {1040: 0.9491}}


def test_a_resumed_log_replaces_what_was_repeated(tmp_path: Path) -> None:
    (tmp_path / "train_a.log").write_text(LOG)
    (tmp_path / "train_b.log").write_text(LOG.replace("1.0646e-02", "3.0000e-02").replace("1,000", "1,050"))
    curves = read_logs([tmp_path / "train_a.log", tmp_path / "train_b.log"])
    assert curves.losses["l_pix"] == {1000: 0.019478, 1050: 0.019478, 1100: 0.03}


def test_log_of_a_real_run(experiment: Path) -> None:
    curves = read_logs(open_experiment(experiment).logs, 4)
    # DDTB: two iterations observe and have no loss of the gates, two hold the gates, four apply them.
    assert list(curves.losses["l_pix"]) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert list(curves.losses["l_gate"]) == [3, 4]
    assert list(curves.metrics["photos psnr"]) == [4, 8]
    assert set(curves.rates) == {"network", "bounds", "gates"}


def test_bounds_from_tensorboard_and_from_checkpoints(experiment: Path) -> None:
    run = open_experiment(experiment)
    watched = quantizer_curves(run)
    assert set(watched) == {"upper", "lower", "gate_upper", "gate_lower", "clipped"}
    assert set(watched["upper"]) == {"body.0.conv1.input", "body.0.conv2.input"}
    assert list(watched["upper"]["body.0.conv1.input"]) == [3, 4, 5, 6, 7, 8]
    assert len(watched["gate_upper"]) == 1

    run.events.rename(run.events.with_name("elsewhere"))
    try:
        stored = quantizer_curves(run)
    finally:
        run.events.with_name("elsewhere").rename(run.events)
    assert set(stored) == {"upper", "lower"}
    assert list(stored["upper"]["body.0.conv1.input"]) == [2, 4, 6, 8]
    state = checkpoint.read(run.checkpoints[-1][1])["params"]
    assert stored["upper"]["body.0.conv1.input"][8] == float(state["body.0.conv1.input_quantizer.upper"])
    # the monitor sees the bounds before the step of iteration 5, the checkpoint those after iteration 4
    assert stored["upper"]["body.0.conv1.input"][4] == pytest.approx(watched["upper"]["body.0.conv1.input"][5])
